"""Seats from one kernel to the next: removing what a kernel left, and waiting for the seat that this frees.

A job may leave a hundred thousand files. Their removal takes seconds, in which the seat is neither free nor in use; a
gateway whose seats are all on their way out would be refused the next kernel, and a job would fail for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kernel_spec.loop import Loop, Timer
from kernel_spec.messages import SeatInfo
from kernel_spec.removal import removal_steps
from kernel_spec.seats import SeatError, Seats, SeatUser

# Less than a client waits for an answer; a seat that is not free by then is not about to be.
WAIT_SECONDS = 8.0

OnSeat = Callable[[SeatUser, SeatInfo], None]
OnRefusal = Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Waiting:
    on_seat: OnSeat
    on_refusal: OnRefusal
    deadline: Timer


class SeatTurnover:
    """Hands out the seats of a launcher, first come, first served, and takes them back."""

    def __init__(self, loop: Loop, seats: Seats) -> None:
        self._loop = loop
        self._seats = seats
        self._removals = 0
        self._waiting: deque[_Waiting] = deque()

    def reserve(self, on_seat: OnSeat, on_refusal: OnRefusal, *, some_leave: bool) -> None:
        """Hand out a seat or refuse: at once, or within `WAIT_SECONDS` where one may become free.

        Parameters
        ----------
        on_seat
            Called with the seat and its user.
        on_refusal
            Called instead, with the reason.
        some_leave
            Whether there is a kernel that has ended or is being ended, so that its seat will be removed.
        """
        if self._seats.free and not self._waiting:
            self._seat(on_seat, on_refusal)
        elif some_leave or self._removals:
            waiting = _Waiting(on_seat, on_refusal, self._loop.call_later(WAIT_SECONDS, lambda: self._give_up(waiting)))
            self._waiting.append(waiting)
        else:
            on_refusal(f"all {len(self._seats.users)} seats are taken")

    def clear(self, user: SeatUser, seat_dir: str, then: Callable[[str | None], None]) -> None:
        """Remove a seat's directory in small steps and free the seat; what cannot be removed is not used again."""
        steps = removal_steps(seat_dir)
        self._removals += 1

        def step() -> None:
            problem = None
            try:
                if next(steps, None) is not None:
                    self._loop.call_later(0.0, step)
                    return
                self._seats.give_back(user)
            except OSError as error:
                problem = f"{seat_dir} could not be removed: {error}"
            self._removals -= 1
            then(problem)
            self._serve()

        step()

    def refuse_all(self, reason: str) -> None:
        """Refuse those who wait: no more kernels are started."""
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.deadline.cancel()
            waiting.on_refusal(reason)

    def _serve(self) -> None:
        while self._waiting and self._seats.free:
            waiting = self._waiting.popleft()
            waiting.deadline.cancel()
            self._seat(waiting.on_seat, waiting.on_refusal)

    def _seat(self, on_seat: OnSeat, on_refusal: OnRefusal) -> None:
        try:
            user, seat = self._seats.take()
        except (SeatError, OSError) as error:
            on_refusal(str(error))
            return
        on_seat(user, seat)

    def _give_up(self, waiting: _Waiting) -> None:
        self._waiting.remove(waiting)
        waiting.on_refusal(f"all {len(self._seats.users)} seats are taken, and none became free in {WAIT_SECONDS:g} s")
