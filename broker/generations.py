"""Pure: from what shall serve to which workers there are: generations of workers, one after the other.

    current ───────────────────────────── serves ──────────────▶ old: drains ▸ stops
      │ the aim differs
      └▶ following: scout loads the plan ▸ the other places load what it has loaded ▸ publish ─▶ current

Workers are immutable, so every change of what shall serve is a new generation beside the one that serves. One worker
of it, the *scout*, tries first: what does not load, or ends the process, costs that worker only. A version that serves
is given up only when the new generation has what takes its place; what the new generation could not load (its files
are gone) is *kept*: the old workers that have it stay for it alone.

The first generation, and one after nothing served, has no scout: every worker loads everything, and each model serves
as soon as one worker has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringserve.broker.crew import Crew
from ringserve.broker.members import BANKS, Generation, Member, Phase, living
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Aim, Moves, Order, Orders, Seat
from ringserve.broker.roster import Place, Roster
from ringserve.broker.staff import Staff

_SECOND_NS = 1_000_000_000
#: Pause after a generation that came to nothing, doubled each time.
_PAUSE_NS_MIN, _PAUSE_NS_MAX = _SECOND_NS, 60 * _SECOND_NS
#: Reasons of generations that load what serves already.
RENEWALS = ("age", "memory")
#: How long versions stay kept, or a worker without something, before a new generation tries to load them; doubled.
_REFRESH_NS_MIN, _REFRESH_NS_MAX = 60 * _SECOND_NS, 3_600 * _SECOND_NS


class Generations:
    """Decides about the workers in `crew`. Others: as `Staff` has them."""

    def __init__(self, crew: Crew, seats: Sequence[Seat], threads: int, *, stop_first: bool = False) -> None:
        self.crew = crew
        self._staff = Staff(crew, seats, threads, stop_first=stop_first)
        self._stop_first = stop_first
        self._number = -1
        self._kills: list[int] = []
        self._pause_ns = _PAUSE_NS_MIN
        self._not_before_ns = 0
        self._in_vain: frozenset[Order] = frozenset()  # what was new in the last one that came to nothing
        self._refresh_wait_ns = _REFRESH_NS_MIN
        self._refresh_ns = 0
        self._renewal = ""
        self.begun: list[str] = []  # reasons of generations that were begun; the caller empties it

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def number(self) -> int:
        """The generation that serves; -1 before the first."""
        return self.crew.current.number if self.crew.current is not None else -1

    @property
    def wanted(self) -> int:
        """How many workers are to serve."""
        return len(self.crew.current.places) if self.crew.current is not None else 0

    @property
    def settled(self) -> bool:
        """Nothing is under way that changes which workers there are."""
        crew = self.crew
        current = crew.current
        if current is None or crew.adoption is not None or crew.following is not None or not crew.pool:
            return False
        full = len(current.members) == len(current.places) and not current.loading()
        return full and all(member.kept for member in crew.old)

    @property
    def active(self) -> int:
        """How many serve."""
        current = self.crew.current
        return sum(bool(member.serves) for member in current.members.values()) if current is not None else 0

    def published(self) -> Orders:
        """As `Staff.published`."""
        return self._staff.published()

    def serves(self, key: ModelVersion) -> bool:
        """A worker may still be running requests of `key`. One that is kept for others is there for those alone."""
        return any(key in (member.kept or member.serves) for member in self.crew.members())

    def trying(self) -> dict[str, set[int]]:
        """Versions, by model, that a new generation is trying to bring."""
        following = self.crew.following
        found: dict[str, set[int]] = {}
        for order in following.fresh if following is not None else ():
            found.setdefault(order.name, set()).add(order.version)
        return found

    # ---------------------------------------------------------------------------------------------------- decisions

    def aim_at(self, aim: Aim) -> None:
        """From now on this shall serve."""
        self._staff.aim = aim

    def renew(self, reason: str) -> None:
        """Replace the workers that serve, although they serve what they shall."""
        self._renewal = reason

    def resize(self, by: int) -> bool:
        """1: one more worker; -1: one less. Whether that can be done now. Never one that others cannot stand in for."""
        current = self.crew.current
        if current is None or not self.settled:
            return False
        if by > 0 and current.closed:
            place = min(current.closed)
            current.closed.remove(place)
            current.grown.add(place)
            return True
        spared = self._staff.spared(current)
        if by > 0 or not spared or self.wanted <= self.crew.workers_min:
            return False
        place = max(spared)
        self.crew.retire(current, place)
        current.closed.add(place)
        current.grown.discard(place)
        return True

    def turn(self, now_ns: int) -> Moves:
        """Decide all that can be decided now."""
        crew, staff, aim = self.crew, self._staff, self._staff.aim
        drain: list[tuple[int, frozenset[ModelVersion] | None]] = []
        if aim is not None:
            adopted = crew.adoption is not None and self._adopt(aim, now_ns)
            for generation in crew.generations:
                generation.gone, generation.singles = aim.gone, aim.singles
            drain = staff.drain(now_ns)
            # What is taken over lies where the aim could not say yet: the next one, which follows at once, does.
            if crew.adoption is None and not adopted:
                self._plan(aim, now_ns)
                if crew.following is not None:
                    self._advance(crew.following, aim, now_ns)
                self._forget_lost()
                self._schedule_refresh(aim, now_ns)
        serve = staff.serve()
        staff.make_room()
        drain += staff.drain(now_ns)
        forks = staff.forks(now_ns)
        stops, crew.stops = crew.stops, []
        kills, self._kills = self._kills + staff.overdue(now_ns), []
        return Moves(forks, serve, drain, stops, kills, self._wake_ns(now_ns))

    def _adopt(self, aim: Aim, now_ns: int) -> bool:
        """Take over what an earlier broker left, once that is known. True when there was something."""
        crew = self.crew
        assert crew.adoption is not None
        if crew.adoption.over(aim, now_ns):
            chosen = crew.adoption.choose(aim, crew.workers_min, crew.workers_max, now_ns)
            crew.current, old, self._number = chosen
            crew.old += old
            self._kills += crew.adoption.hung()
            crew.adoption = None
        return crew.current is not None

    def _plan(self, aim: Aim, now_ns: int) -> None:
        """Begin a new generation if the aim differs from what serves; give one up that leads nowhere any more."""
        crew = self.crew
        if crew.following is not None:
            if crew.following.hopeless:
                self._come_to_nothing(crew.following, now_ns)
            elif self._pointless(crew.following, aim):
                self._kills += crew.dismiss(crew.following)
            else:
                return
        current = crew.current
        if not crew.pool:
            return
        due = 0 < self._refresh_ns <= now_ns
        if current is None or not (current.orders or current.members):
            orders = self._loadable(aim, kept_too=due)
            if orders:
                crew.current = self._make(Phase.SERVE)
                crew.current.orders, crew.current.gone = orders, aim.gone
                self._refresh_ns = 0
                self._renewal = ""
                self.begun.append("start")
            return
        if current.loading() or any(not member.kept for member in crew.old):
            return  # two generations in memory are enough
        differs = self._differs(current, aim)
        if not due and not differs and not self._renewal:
            return
        following = self._make(Phase.SCOUT)
        following.refresh, following.gone = due, aim.gone
        following.reason = "change" if differs else self._renewal or "refresh"
        self._set_plan(following, current, aim)
        if now_ns < self._not_before_ns and following.fresh <= self._in_vain:
            self._number -= 1
            return
        crew.following = following
        self._refresh_ns = 0
        self._renewal = ""
        self.begun.append(following.reason)
        if not following.plan():
            self._publish(following)

    def _loadable(self, aim: Aim, *, kept_too: bool) -> Orders:
        """What of the aim workers could load, with or without that which old workers are kept for."""
        return {
            key: order
            for key, order in {**aim.fallbacks, **aim.orders}.items()
            if order.path and order not in aim.gone and (kept_too or self.crew.kept(key) != order)
        }

    def _make(self, phase: Phase) -> Generation:
        taken = {member.generation % BANKS for member in self.crew.members()}
        taken.update(generation.number % BANKS for generation in self.crew.generations)
        self._number += 1
        while self._number % BANKS in taken and len(taken) < BANKS:
            self._number += 1
        crew = self.crew
        made = Generation(self._number, phase, Roster(crew.workers_max), {})
        # As many places as there were.
        made.closed = set(range(crew.workers_min, crew.workers_max) if crew.current is None else crew.current.closed)
        # Neither the first nor the last where there are more: the broker shares its core with one of them.
        made.scout_place = made.places[len(made.places) // 2]
        if self._stop_first and crew.current is not None:
            spared = self._staff.spared(crew.current)
            if spared and made.scout_place not in spared:
                made.scout_place = spared[0]
        return made

    def _set_plan(self, generation: Generation, current: Generation, aim: Aim) -> None:
        """What the scout is to load: what is new first, so that it is known soon whether all this is any use."""
        fresh: Orders = {}
        again: Orders = {}
        rest: Orders = {}
        for key, order in aim.orders.items():
            single = key in aim.singles
            kept = self.crew.kept(key) == order
            if current.orders.get(key) == order:
                if not (single and (kept or any(key in holder.serves for holder in current.holders(key)))):
                    rest[key] = order
            elif kept:
                if generation.refresh and not single:
                    again[key] = order
            else:
                fresh[key] = order
        orders = {**fresh, **again, **rest}
        generation.orders = {key: order for key, order in orders.items() if order not in aim.gone}
        generation.fallbacks = dict(aim.fallbacks)
        generation.fresh = frozenset(fresh.values())
        generation.sought = generation.fresh.union(again.values())

    def _differs(self, current: Generation, aim: Aim) -> bool:
        """Something is to serve and does not, or is loaded and need not be."""
        if any(not aim.wants(key) for key in (*current.orders, *current.ready)):
            return True
        return any(order not in (current.orders.get(key), self.crew.kept(key)) for key, order in aim.orders.items())

    def _pointless(self, generation: Generation, aim: Aim) -> bool:
        current = self.crew.current
        if current is None or any(aim.wants(key) for key in generation.ready):
            return False
        if self._stop_first and not current.members:
            return False  # there is nothing else that could serve
        wanted = {order for order in generation.fresh if aim.orders.get(order.key) == order}
        if generation.fresh and not wanted:
            return True
        scout = generation.members.get(generation.scout_place)
        if scout is not None and scout.loading in generation.fresh - wanted:
            return True  # which may take long
        return generation.reason == "change" and not generation.refresh and not self._differs(current, aim)

    def _come_to_nothing(self, generation: Generation, now_ns: int) -> None:
        self._kills += self.crew.dismiss(generation)
        self._in_vain = generation.fresh
        self._not_before_ns = now_ns + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _PAUSE_NS_MAX)

    def _advance(self, generation: Generation, aim: Aim, now_ns: int) -> None:
        members = generation.members
        if generation.phase is Phase.SCOUT:
            if generation.roster[generation.scout_place] is Place.VACANT:
                assert self.crew.current is not None
                self._set_plan(generation, self.crew.current, aim)  # which may have changed since an earlier scout
                if not generation.plan():
                    self._publish(generation)
                return
            scout = members.get(generation.scout_place)
            if scout is None or not scout.complete:
                return
            if not self._useful(scout, generation, aim):
                self._come_to_nothing(generation, now_ns)
                return
            generation.orders, generation.fallbacks = dict(scout.loaded), {}
            if self._stop_first:
                self._publish(generation)  # the other places are filled as they come free
                return
            generation.phase = Phase.FILL
        asked = all(place in generation.asked for place in generation.places) or not generation.plan()
        if asked and not generation.loading():
            if any(member.complete for member in members.values()):
                self._publish(generation)
            else:
                self._come_to_nothing(generation, now_ns)

    def _useful(self, scout: Member, generation: Generation, aim: Aim) -> bool:
        """Replacing the current generation by what this scout has loaded makes something better."""
        current = self.crew.current
        assert current is not None
        if any(scout.loaded.get(order.key) == order for order in generation.sought):
            return True
        if self._stop_first and not current.members:
            return bool(scout.loaded)
        if generation.reason in RENEWALS and all(key in scout.loaded for key in generation.orders):
            return True
        drops = any(not aim.wants(key) for key in current.orders)
        if drops and self._pause_ns >= _PAUSE_NS_MAX:
            return True  # it was tried often enough: what it could not load, old workers are kept for
        return bool(scout.loaded) and (drops or current.lacks())

    def _publish(self, generation: Generation) -> None:
        """It takes over: the generation before it drains."""
        crew = self.crew
        if crew.current is not None:
            crew.old += crew.current.members.values()
        generation.phase = Phase.SERVE
        crew.current, crew.following = generation, None
        self._pause_ns = _PAUSE_NS_MIN

    def _forget_lost(self) -> None:
        """What no worker has any more and none can bring does not serve."""
        for generation in self.crew.generations:
            for key in [key for key in generation.ready if not generation.may_bring(key)]:
                del generation.ready[key]

    def _schedule_refresh(self, aim: Aim, now_ns: int) -> None:
        """Kept versions, and workers that lack something, are put in order by another generation, some time."""
        crew = self.crew
        if crew.current is None or crew.following is not None:
            return
        kept = {(key, member.loaded[key]) for member in living(crew.old) for key in member.kept or ()}
        loadable = any(key not in aim.singles and order.path and order not in aim.gone for key, order in kept)
        if not loadable and not crew.current.lacks():
            self._refresh_ns, self._refresh_wait_ns = 0, _REFRESH_NS_MIN
        elif not self._refresh_ns:
            self._refresh_ns = now_ns + self._refresh_wait_ns
            self._refresh_wait_ns = min(2 * self._refresh_wait_ns, _REFRESH_NS_MAX)

    def _wake_ns(self, now_ns: int) -> int:
        times = [self._not_before_ns, self._refresh_ns, *self._staff.wake_times()]
        return min((time for time in times if time > now_ns), default=0)
