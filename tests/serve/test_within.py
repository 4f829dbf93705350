"""A limit of time: what it passes on, and that a failure which nobody waits for any more is nobody's business."""

import asyncio
import gc

import pytest

from sumix_stream.serve.within import within


async def fails_when_told_to_go() -> None:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        raise ConnectionResetError("Connection lost") from None


def test_results_faults_and_time():
    async def test():
        async def found():
            return 7

        assert await within(1.0, found()) == 7
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, asyncio.sleep(30))
        with pytest.raises(ConnectionResetError):
            await within(0.01, fails_when_told_to_go())

    asyncio.run(test())


def test_a_failure_that_comes_with_the_cancellation_is_not_logged():
    logged = []

    async def test():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        waiting = asyncio.ensure_future(within(30.0, fails_when_told_to_go()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        del waiting
        gc.collect()
        await asyncio.sleep(0.01)

    asyncio.run(test())
    assert not logged
