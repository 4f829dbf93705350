"""Open files: each connection is one, and without a spare one neither a client nor a worker can be begun."""

import dataclasses
import logging

try:
    import resource
except ImportError:  # no such limit here
    resource = None  # type: ignore[assignment]

from sumix_stream.serve.limits import Limits

_OWN = 64  # files that the process itself may have open: libraries, pipes to workers, the log
_LEAST_WAITING = 16

_log = logging.getLogger(__name__)


def within_open_files(limits: Limits) -> Limits:
    """The limits with as many waiting connections as the process may have open files for, which is raised if it can.

    Raises ValueError where there are not enough for the streams.
    """
    if resource is None:
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_streams + limits.max_waiting + _OWN
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    if hard == resource.RLIM_INFINITY or hard > soft:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting = min(limits.max_waiting, soft - limits.max_streams - _OWN)
    if waiting < min(_LEAST_WAITING, limits.max_waiting):
        least = limits.max_streams + _OWN + _LEAST_WAITING
        raise ValueError(
            f"{limits.max_streams} streams need {least} open files and this process may have {soft}: raise the limit "
            "(ulimit -n, LimitNOFILE= of systemd) or lower --max-streams"
        )
    if waiting < limits.max_waiting:
        _log.warning("only %d connections may wait: this process may have %d open files", waiting, soft)
    return dataclasses.replace(limits, max_waiting=waiting)
