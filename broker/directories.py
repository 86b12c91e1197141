"""Pure: what is known of one model's directories on disk, from look to look."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from ringserve.broker.aspired import Listing, Policy, VersionDirectory, choose
from ringserve.broker.messages import ModelVersion
from ringserve.broker.orders import Order, Orders
from ringserve.broker.stability import Watched

#: A base path that has not been read within this time counts as one that cannot be.
SILENT_NS_MAX = 10_000_000_000


class ModelPlan(NamedTuple):
    """One configured model, as far as its life cycle goes. hold: give up none of its versions for now. move: give up
    versions for others that are asked for, and not for none."""

    name: str
    base_path: str
    versions: Policy
    hold: bool = False
    move: bool = False


@dataclass
class Directory:
    """One version's directory. stamp: how often it was made anew. vanished: it was not there at a look, and was not
    looked into since. refusal: why it must not be loaded, whatever its model file says."""

    path: str
    inode: int
    stamp: int
    watched: Watched
    vanished: bool = False
    refusal: str = ""


@dataclass
class Base:
    """A configured model and its base path. since_ns: when it was configured, or asked for other versions. listing: the
    last look that saw it, or that it is missing; None before. error: why the last look saw nothing; one such look
    changes nothing. pending: a version is waited for, so that every look matters, even one that sees nothing new.
    outdated: other versions are asked for than when it was last looked at. late: there was none of its name before, so
    that what workers of an earlier broker have is not its. strangers: nor is what workers had then, of a model of that
    name that was taken out, unless it lies here."""

    plan: ModelPlan
    since_ns: int
    listing: Listing | None = None
    error: str = ""
    directories: dict[int, Directory] = field(default_factory=dict)
    said: str = ""
    pending: bool = True
    outdated: bool = False
    late: bool = False
    strangers: frozenset[Order] = frozenset()

    def order(self, version: int) -> Order:
        """What loads this version, as its directory is now."""
        directory = self.directories[version]
        return Order(self.plan.name, version, directory.path, directory.stamp)

    def has(self, version: int) -> bool:
        """Its directory is there, as far as is known."""
        return version in self.directories and not self.directories[version].vanished

    def take(self, listing: Listing, now_ns: int) -> list[Order]:
        """A look at the base path. Returns orders whose directories have changed: earlier errors say nothing now."""
        self.error = listing.error
        if listing.error and not listing.missing:
            return []
        first = self.listing is None
        self.listing, self.outdated = listing, False
        changed = []
        for found in listing.found:
            known = self.directories.get(found.version)
            snapshot = listing.snapshots.get(found.version)
            if known is not None and (known.vanished or known.inode != found.inode or known.path != found.path):
                if snapshot is None:
                    known.vanished = True  # the next look goes into it
                    continue
                if known.path == found.path and known.watched.is_as_seen(snapshot):
                    # Some file systems number anew whatever is not in their cache.
                    known.inode, known.vanished = found.inode, False
                else:
                    changed.append(self.order(found.version))
                    self._add(found, known.stamp + 1, trusted=False)
            elif known is None:
                self._add(found, 0, trusted=first)
            known = self.directories[found.version]
            if snapshot is not None and known.watched.see(snapshot, now_ns):
                changed.append(self.order(found.version))
            if found.version in listing.batching:
                _, known.refusal = listing.batching[found.version]
        versions = {found.version for found in listing.found}
        for version, known in self.directories.items():
            known.vanished = known.vanished or version not in versions
        if first and self.strangers:
            # What lies here after all is its own from now on, whatever becomes of the directory.
            self.strangers -= {self.order(version) for version in self.directories}
        return changed

    def _add(self, found: VersionDirectory, stamp: int, *, trusted: bool) -> None:
        watched = Watched(trusted=trusted)
        self.directories[found.version] = Directory(found.path, found.inode, stamp, watched)

    def aspired(self, trying: Container[int]) -> list[int] | None:
        """The versions that are to serve, highest first; None when that cannot be known now.

        trying: versions that are being loaded; they stay aspired until that is over, as long as they are there.
        """
        listing = self.listing
        if listing is None:
            return None
        chosen = {directory.version for directory in choose(listing.found, self.plan.versions)}
        chosen.update(directory.version for directory in listing.found if directory.version in trying)
        return sorted(chosen, reverse=True)

    def forget_vanished(self, but: Container[int]) -> None:
        """Nothing serves or loads of these any more."""
        there = {found.version for found in self.listing.found} if self.listing is not None else set()
        for version in [version for version in self.directories if version not in there and version not in but]:
            del self.directories[version]

    def is_gone(self, order: Order) -> bool:
        """The files that this order was for are not there any more."""
        if self.listing is None:
            return False
        known = self.directories.get(order.version)
        return known is None or known.vanished or self.order(order.version) != order

    def is_strange(self, order: Order) -> bool:
        """It is another model's that had this name."""
        return self.late and (not order.path or order in self.strangers)

    def has_arrived(self, published: Orders) -> bool:
        """One of the versions that are asked for serves, from where it lies now."""
        found = choose(self.listing.found, self.plan.versions) if self.listing is not None else ()
        orders = [self.order(directory.version) for directory in found]
        return any(published.get(ModelVersion(order.name, order.version)) == order for order in orders)

    def complaint(self, now_ns: int) -> str:
        """What is wrong with the base path, in TF Serving's words; empty when there are versions to serve."""
        plan, listing = self.plan, self.listing
        if self.error:
            return f"Could not find base path {plan.base_path} for servable {plan.name} with error {self.error}"
        if listing is None or self.outdated:
            silent = now_ns >= self.since_ns + SILENT_NS_MAX
            return f"Base path {plan.base_path} for servable {plan.name} does not answer" if silent else ""
        if not listing.found:
            return (
                f"No versions of servable {plan.name} found under base path {plan.base_path}. "
                "Did you forget to name your leaf directory as a number (eg. '/1/')?"
            )
        if not choose(listing.found, plan.versions):
            asked = ", ".join(map(str, plan.versions)) or "none at all"
            return (
                f"None of the versions asked for of servable {plan.name} is under its base path {plan.base_path}: "
                f"asked for {asked}, found {', '.join(str(directory.version) for directory in listing.found)}"
            )
        return ""

    def remark(self) -> str:
        """What is worth a line in the log though the rest is served; empty when nothing is."""
        plan, listing = self.plan, self.listing
        if listing is None or self.error or not isinstance(plan.versions, tuple):
            return ""
        missing = set(plan.versions) - {directory.version for directory in listing.found}
        if not missing or missing == set(plan.versions):
            return ""
        numbers = ", ".join(map(str, sorted(missing)))
        whose = f"servable {plan.name} that are not under its base path {plan.base_path}"
        return f"Versions asked for of {whose}: {numbers}"
