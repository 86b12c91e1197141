"""Work on a thread: one piece after the other, each with its own outcome."""

from __future__ import annotations

import asyncio
import threading

from ringserve.frontend.http2.aside import Aside


def test_outcomes_come_in_order_and_on_the_loop() -> None:
    async def run() -> None:
        bugs: list[BaseException] = []
        outcomes: list[object] = []
        done = asyncio.Event()
        aside = Aside(asyncio.get_running_loop(), bugs.append)

        def fail() -> None:
            raise ValueError("as asked")

        def note(result: object, error: Exception | None) -> None:
            assert threading.current_thread() is threading.main_thread()
            outcomes.append(result if error is None else type(error))

        def bug(result: object, error: Exception | None) -> None:
            raise RuntimeError("a bug of the one who waits")

        aside.do(threading.get_ident, lambda result, _: outcomes.append(result != threading.get_ident()))
        aside.do(fail, note)
        aside.do(lambda: 5, bug)
        aside.do(lambda: 6, note)
        aside.do(lambda: None, lambda *_: done.set())
        async with asyncio.timeout(60):
            await done.wait()
        assert outcomes == [True, ValueError, 6]
        assert [type(error) for error in bugs] == [RuntimeError]
        again = asyncio.Event()
        aside.do(lambda: None, lambda *_: again.set())
        async with asyncio.timeout(60):
            await again.wait()
        aside.close()

    asyncio.run(run())


def test_what_waits_at_the_end_is_dropped() -> None:
    async def run() -> None:
        gate, began = threading.Event(), threading.Event()
        called: list[object] = []
        aside = Aside(asyncio.get_running_loop(), called.append)

        def wait() -> None:
            began.set()
            assert gate.wait(60)

        aside.do(wait, lambda *_: called.append(1))
        aside.do(lambda: 2, lambda *_: called.append(2))
        while not began.is_set():
            await asyncio.sleep(0)
        aside.close()
        gate.set()
        async with asyncio.timeout(60):
            while not called:
                await asyncio.sleep(0)
        assert called == [1]

    asyncio.run(run())
