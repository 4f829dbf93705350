"""The task `classification`: labels of whole utterances, and of a stream chunk by chunk."""
