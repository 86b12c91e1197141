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

from ringserve.broker.crew import Crew
from ringserve.broker.fleet import preference
from ringserve.broker.members import BANKS, Generation, Member, Phase, living
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Aim, ForkPlan, Moves, Order, Orders
from ringserve.broker.roster import Place, Roster

_SECOND_NS = 1_000_000_000
#: A load that takes longer has hung (a file server that never answers), and its worker is ended.
_LOAD_NS_MAX = 1_800 * _SECOND_NS
#: A worker that was told to leave and has not within this time is killed.
_STOP_NS_MAX = 10 * _SECOND_NS
#: Pause after a generation that came to nothing, doubled each time.
_PAUSE_NS_MIN, _PAUSE_NS_MAX = _SECOND_NS, 60 * _SECOND_NS
#: How long versions stay kept, or a worker without something, before a new generation tries to load them; doubled.
_REFRESH_NS_MIN, _REFRESH_NS_MAX = 60 * _SECOND_NS, 3_600 * _SECOND_NS


class Generations:
    """Decides about the workers in `crew`. cpus: cores to pin to, by place; empty = no pinning. threads: of each."""

    def __init__(self, crew: Crew, cpus: tuple[int, ...], threads: int) -> None:
        self.crew = crew
        self._cpus = cpus
        self._threads = threads
        self._aim: Aim | None = None
        self._number = -1
        self._kills: list[int] = []
        self._pause_ns = _PAUSE_NS_MIN
        self._not_before_ns = 0
        self._in_vain: frozenset[Order] = frozenset()  # what was new in the last one that came to nothing
        self._refresh_wait_ns = _REFRESH_NS_MIN
        self._refresh_ns = 0

    # ------------------------------------------------------------------------------------------------------ looking

    @property
    def number(self) -> int:
        """The generation that serves; -1 before the first."""
        return self.crew.current.number if self.crew.current is not None else -1

    def published(self) -> Orders:
        """The versions that serve, or will again when workers that died are replaced; of an aim's only the wanted."""
        crew = self.crew
        found: Orders = {}
        for member in living(crew.old):
            found.update({key: member.loaded[key] for key in member.kept or ()})
        if crew.adoption is not None:
            for member in crew.adoption.members:
                found.update(member.loaded)
        for generation in reversed(crew.generations):
            found.update(generation.ready)
        if self._aim is None or crew.adoption is not None:
            return found
        return {key: order for key, order in found.items() if self._aim.wants(key)}

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
        self._aim = aim

    def turn(self, now_ns: int) -> Moves:
        """Decide all that can be decided now."""
        crew, aim = self.crew, self._aim
        drain: list[tuple[int, frozenset[ModelVersion]]] = []
        if aim is not None:
            if crew.adoption is not None:
                self._adopt(aim, now_ns)
            for generation in crew.generations:
                generation.gone = aim.gone
            drain = self._drain(now_ns)
            if crew.adoption is None:
                self._plan(aim, now_ns)
                if crew.following is not None:
                    self._advance(crew.following, aim, now_ns)
                self._forget_lost()
                self._schedule_refresh(aim, now_ns)
        serve = self._serve()
        drain += self._drain(now_ns)
        forks = self._forks(now_ns)
        self._kill_overdue(now_ns)
        stops, crew.stops = crew.stops, []
        kills, self._kills = self._kills, []
        return Moves(forks, serve, drain, stops, kills, self._wake_ns(now_ns))

    def _adopt(self, aim: Aim, now_ns: int) -> None:
        crew = self.crew
        assert crew.adoption is not None
        if crew.adoption.over(now_ns):
            crew.current, old, self._number = crew.adoption.choose(aim, crew.workers_count, now_ns)
            crew.old += old
            self._kills += crew.adoption.hung()
            crew.adoption = None

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
            return
        if current.loading() or any(not member.kept for member in crew.old):
            return  # two generations in memory are enough
        if not due and not self._differs(current, aim):
            return
        following = self._make(Phase.SCOUT)
        following.refresh, following.gone = due, aim.gone
        self._set_plan(following, current, aim)
        if now_ns < self._not_before_ns and following.fresh <= self._in_vain:
            self._number -= 1
            return
        crew.following = following
        self._refresh_ns = 0
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
        return Generation(self._number, phase, Roster(self.crew.workers_count), {})

    def _set_plan(self, generation: Generation, current: Generation, aim: Aim) -> None:
        """What the scout is to load: what is new first, so that it is known soon whether all this is any use."""
        fresh: Orders = {}
        again: Orders = {}
        rest: Orders = {}
        for key, order in aim.orders.items():
            single = key in aim.singles
            if current.orders.get(key) == order:
                if not (single and any(key in holder.serves for holder in current.holders(key))):
                    rest[key] = order
            elif self.crew.kept(key) == order:
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
        wanted = {order for order in generation.fresh if aim.orders.get(order.key) == order}
        if generation.fresh and not wanted:
            return True
        scout = generation.members.get(generation.scout_place)
        if scout is not None and scout.loading in generation.fresh - wanted:
            return True  # which may take long
        return not generation.refresh and not self._differs(current, aim)

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
        drops = any(not aim.wants(key) for key in current.orders)
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

    # --------------------------------------------------------------------------------------------------- what to do

    def _serve(self) -> list[tuple[int, int, frozenset[ModelVersion]]]:
        """Workers that may be sent more than before."""
        crew = self.crew
        if crew.adoption is not None:
            allowed = [(member, frozenset(member.loaded)) for member in crew.adoption.members]
        else:
            allowed = [
                (member, self._may_serve(generation, member))
                for generation in crew.generations
                for member in generation.members.values()
            ]
        grown = []
        for member, keys in allowed:
            if keys - member.serves and not member.killed:
                member.serves |= keys
                grown.append((member.worker_id, member.place, member.serves))
        for generation in crew.generations:
            for member in generation.members.values():
                generation.ready.update({key: member.loaded[key] for key in member.serves})
        return grown

    def _may_serve(self, generation: Generation, member: Member) -> frozenset[ModelVersion]:
        """All, when all is loaded. Before that, only what nobody else can serve: it is slow, and may die of a load."""
        if generation is self.crew.current:
            if member.complete:
                return frozenset(member.loaded)
            others = [other for other in generation.members.values() if other.complete]
            return frozenset(key for key in member.loaded if not any(key in other.loaded for other in others))
        served = {key.name for key in self.published() if key not in generation.ready}
        return frozenset(key for key in member.loaded if key.name not in served)

    def _drain(self, now_ns: int) -> list[tuple[int, frozenset[ModelVersion]]]:
        drain = []
        for member in self.crew.old:
            if member.stopped_ns:
                continue
            if not member.serves:
                self.crew.worker_drained(member.worker_id, now_ns)
                continue
            kept = frozenset(key for key in member.serves if self._shall_keep(member, key))
            if kept != member.kept:
                member.kept = kept
                drain.append((member.worker_id, kept))
        return drain

    def _shall_keep(self, member: Member, key: ModelVersion) -> bool:
        aim, current = self._aim, self.crew.current
        if aim is None or not aim.wants(key) or (current is not None and current.holders(key)):
            return False
        if key not in aim.singles:
            return True
        # Its state is in the worker that served it: the one that the fleet prefers.
        holders = [other for other in living(self.crew.old) if key in other.serves]
        return member is min(holders, key=lambda holder: (preference(key.name, holder.place), holder.worker_id))

    def _forks(self, now_ns: int) -> list[ForkPlan]:
        crew = self.crew
        forks = []
        for generation in crew.generations if crew.pool else ():
            plan = generation.plan()
            for place in generation.roster.due(self._open_places(generation), now_ns) if plan else ():
                generation.given[place] = plan
                generation.asked.add(place)
                cpus = (self._cpus[place % len(self._cpus)],) if self._cpus else ()
                forks.append(ForkPlan(generation.index_of(place), generation.number, cpus, self._threads, plan))
        return forks

    def _open_places(self, generation: Generation) -> list[int]:
        """Places in which a worker may be forked now."""
        if generation.phase is Phase.SCOUT:
            return [generation.scout_place]
        if generation.phase is Phase.FILL:  # one that died in this phase is not waited for
            return [place for place in generation.places if place not in generation.asked]
        return list(generation.places)

    def _kill_overdue(self, now_ns: int) -> None:
        for member in self.crew.members():
            stop_overdue = member.stopped_ns and now_ns >= member.stopped_ns + _STOP_NS_MAX
            if stop_overdue or (member.loading is not None and now_ns >= member.loading_ns + _LOAD_NS_MAX):
                self._kills.append(member.pid)
                member.stopped_ns = now_ns if member.stopped_ns else 0
                member.loading_ns = now_ns

    def _wake_ns(self, now_ns: int) -> int:
        crew = self.crew
        times = [self._not_before_ns, self._refresh_ns]
        if crew.adoption is not None:
            times.append(crew.adoption.until_ns)
        if crew.pool:
            times += [each.roster.wake_ns(self._open_places(each)) for each in crew.generations]
        for member in crew.members():
            times.append(member.stopped_ns and member.stopped_ns + _STOP_NS_MAX)
            times.append(member.loading_ns + _LOAD_NS_MAX if member.loading is not None else 0)
        return min((time for time in times if time > now_ns), default=0)
