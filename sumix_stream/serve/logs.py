"""Logs as lines of JSON. No audio, and no text unless asked for; no addresses."""

import json
import logging
import sys
import time
import traceback

_OWN = "fields"  # attribute of a record that holds an event's values


class JsonFormatter(logging.Formatter):
    """time (UTC), level, event and the event's values, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, _OWN, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False, default=str)


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **values: object) -> None:
    """Log an event with values."""
    logger.log(level, event, extra={_OWN: values})


def set_up() -> None:
    """Send the records of this package to standard error. What the websocket library and asyncio say of clients that
    break the rules or have gone is left out: it would be theirs to say how long the log is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, level in (("sumix_stream", logging.INFO), ("websockets", logging.CRITICAL)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
