"""`Senders`: whose checksums can be verified, for verify_checksums="auto".

A capture on the sending host holds what the system leaves for its network card to fill in, instead of checksums: the sum of the
pseudo-header (Linux, Windows), or zero, or anything. So the first segments of each source address decide. Called once a segment, in packet
order, and only then.
"""

from __future__ import annotations

from ..verdict import Verdict
from .decode import RIGHT_CHECKSUM, UNFILLED_CHECKSUM

__all__ = ["Senders"]

JUDGED_SEGMENTS = 16  # of a sender, before it is decided upon
MAX_SENDERS = 1 << 16  # that are remembered; of others every segment is verified

_VERIFIED, _OFFLOADS = True, False

Sender = tuple[bytes, int]  # its address, and the tunnels around: of what it sends in one, another card may fill in the checksums


class Senders:
    """Notices senders whose checksums the network card fills in behind the capture."""

    def __init__(self) -> None:
        self._undecided: dict[Sender, list[int]] = {}  # segments so far, and how many of them had a wrong checksum
        self._decided: dict[Sender, bool] = {}
        self.offloading = 0  # senders that were noticed

    def judge(self, sender: Sender, checksum: int) -> Verdict:
        """What becomes of a segment with such a checksum: SEGMENT or BAD_CHECKSUM."""
        verdict = Verdict.SEGMENT if checksum == RIGHT_CHECKSUM else Verdict.BAD_CHECKSUM
        decided = self._decided.get(sender)
        if decided is not None:
            return verdict if decided is _VERIFIED else Verdict.SEGMENT
        counts = self._undecided.get(sender)
        if counts is None:
            if len(self._undecided) + len(self._decided) == MAX_SENDERS:
                return verdict
            counts = self._undecided[sender] = [0, 0]
        seen, wrong = counts
        if checksum == UNFILLED_CHECKSUM and wrong == seen:
            wrong = JUDGED_SEGMENTS
        counts[:] = seen + 1, wrong + (verdict is not Verdict.SEGMENT)
        if counts[1] > JUDGED_SEGMENTS // 2:
            self._decide(sender, _OFFLOADS)
            self.offloading += 1
            return Verdict.SEGMENT
        if counts[0] == JUDGED_SEGMENTS:
            self._decide(sender, _VERIFIED)
        return verdict

    def _decide(self, sender: Sender, decision: bool) -> None:
        del self._undecided[sender]
        self._decided[sender] = decision
