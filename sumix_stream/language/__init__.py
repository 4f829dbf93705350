"""Language models made from text: counting, smoothing, files, perplexity."""
