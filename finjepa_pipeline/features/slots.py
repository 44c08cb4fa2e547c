"""Where the rows of each asset stand in the panel's files, with room for the sessions to come.

A new day is written into the room behind an asset's rows. The panel before shares the file (a hard link) and never looks
there, so that its readers see what they always saw, and a process that dies on the way leaves nothing behind that counts.
An asset whose past changes gets a new place at the end of the file.

Shape suffixes: A assets.
"""

from dataclasses import dataclass

import numpy as np

ROOM = 64  # sessions for which an asset can grow where it is: a quarter
SPARE = 4  # the end of the file is a fourth of what is used; it takes no space on the disk until it is written


@dataclass(frozen=True)
class Slots:
    """Places in a file of `size` rows, of which those from `used` on are free.

    Attributes:
        start_A: first row of each asset; room_A: rows that it may fill.
    """

    start_A: np.ndarray
    room_A: np.ndarray
    used: int
    size: int

    @classmethod
    def fresh(cls, lengths_A: np.ndarray, alive_A: np.ndarray) -> "Slots":
        """One asset after the other, with room for those that are still observed."""
        room_A = lengths_A + np.where(alive_A, ROOM, 0)
        used = int(room_A.sum())
        return cls(np.cumsum(room_A) - room_A, room_A, used, used + used // SPARE + ROOM)

    def moved(self, before_A: np.ndarray, lengths_A: np.ndarray, moved_A: np.ndarray) -> "Slots | None":
        """The places of other assets in the same file, or None if there is no room.

        Args:
            before_A: place of each asset in the list before; of one that is new, any.
            moved_A: which get a new place.
        """
        need_A = np.where(moved_A, lengths_A + ROOM, 0)
        used = self.used + int(need_A.sum())
        if used > self.size:
            return None
        start_A = np.where(moved_A, self.used + np.cumsum(need_A) - need_A, self.start_A[before_A])
        return Slots(start_A, np.where(moved_A, need_A, self.room_A[before_A]), used, self.size)
