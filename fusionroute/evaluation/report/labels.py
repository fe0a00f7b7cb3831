"""Names beside the points of a scatter plot, placed so that they cover neither each other nor a point."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import dist

Spot = tuple[float, float]
LETTER, LINE = 6.9, 15.0  # about the width of a letter and the height of a line at 12 px, in a wide font
GAP, DOT = 8.0, 5.0
FAR = 11.0  # a name further away than this is joined to its point by a line
RINGS, ROUNDS = 14, 4
# What is worse than what: leaving the frame, covering something, lines that cross, looking like another's, distance.
OUTSIDE, COVER, CROSSING, MISTAKEN, DISTANCE = 100.0, 10.0, 300.0, 40.0, 2.0


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across * down if across > 0 and down > 0 else 0.0

    def outside(self, other: "Box") -> float:
        """How much of this box lies outside the other."""
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(other)

    def nearest(self, spot: Spot) -> Spot:
        """The point of this box next to ``spot``."""
        return min(max(spot[0], self.left - 2), self.right + 2), min(max(spot[1], self.top + 3), self.bottom - 3)

    def is_cut(self, a: Spot, b: Spot) -> bool:
        """Whether the line from a to b runs through this box."""
        falls = _cross(a, b, (self.left, self.top), (self.right, self.bottom))
        return falls or _cross(a, b, (self.left, self.bottom), (self.right, self.top))


@dataclass(frozen=True)
class Label:
    """Where a name stands: its base line and the end, or middle, that ``x`` is; ``leader`` is where its line ends."""

    text: str
    x: float
    y: float
    anchor: str
    leader: Spot | None = None


def place(names: Sequence[str], spots: Sequence[Spot], frame: Box) -> list[Label]:
    """One label per point, placed from the top down and from the bottom up; the better of the two."""
    order = sorted(range(len(names)), key=lambda at: (spots[at][1], spots[at][0], at))
    tries = [_settled(order, names, spots, frame), _settled(order[::-1], names, spots, frame)]
    boxes = min(tries, key=lambda boxes: sum(_cost(boxes[at], at, boxes, spots, frame) for at in order))
    return [_label(name, spot, boxes[at]) for at, (name, spot) in enumerate(zip(names, spots, strict=True))]


def _settled(order: Sequence[int], names: Sequence[str], spots: Sequence[Spot], frame: Box) -> dict[int, Box]:
    """Each label in turn takes its best place among the others, until none moves."""
    boxes: dict[int, Box] = {}
    for _ in range(ROUNDS):
        before = dict(boxes)
        for at in order:
            boxes[at] = _best(_places(len(names[at]) * LETTER, *spots[at]), at, boxes, spots, frame)
        if boxes == before:
            break
    return boxes


def _best(places: Iterator[Box], at: int, boxes: Mapping[int, Box], spots: Sequence[Spot], frame: Box) -> Box:
    best, least = None, float("inf")
    for box in places:
        if _far(box, spots[at]) < least and (cost := _cost(box, at, boxes, spots, frame)) < least:
            best, least = box, cost
    assert best is not None
    return best


def _far(box: Box, spot: Spot) -> float:
    return DISTANCE * dist(box.nearest(spot), spot)


def _cost(box: Box, at: int, boxes: Mapping[int, Box], spots: Sequence[Spot], frame: Box) -> float:
    """How bad it is to put label ``at`` into ``box`` while the others stand where they stand."""
    others = {other: taken for other, taken in boxes.items() if other != at}
    return _far(box, spots[at]) + _harm(box, at, others, spots, frame)


def _harm(box: Box, at: int, others: Mapping[int, Box], spots: Sequence[Spot], frame: Box) -> float:
    own, near = spots[at], box.nearest(spots[at])
    strangers = [spot for other, spot in enumerate(spots) if other != at]
    covered = sum(box.overlap(Box(x - DOT, y - DOT, x + DOT, y + DOT)) for x, y in spots)
    covered += sum(box.overlap(other) for other in others.values())
    crossed = sum(_passes(own, near, spot) for spot in strangers)
    for other, taken in others.items():
        theirs = spots[other], taken.nearest(spots[other])
        crossed += _cross(own, near, *theirs) + taken.is_cut(own, near) + box.is_cut(*theirs)
    mistaken = sum(dist(spot, box.nearest(spot)) < FAR for spot in strangers)
    return OUTSIDE * box.outside(frame) + COVER * covered + CROSSING * crossed + MISTAKEN * mistaken


def _passes(a: Spot, b: Spot, spot: Spot) -> bool:
    """Whether the line from a to b runs through a point's dot."""
    along, across = (b[0] - a[0], b[1] - a[1]), (spot[0] - a[0], spot[1] - a[1])
    length = along[0] ** 2 + along[1] ** 2
    share = min(max((along[0] * across[0] + along[1] * across[1]) / length, 0.0), 1.0) if length else 0.0
    return share > 0 and dist(spot, (a[0] + share * along[0], a[1] + share * along[1])) < DOT


def _cross(a: Spot, b: Spot, c: Spot, d: Spot) -> bool:
    """Whether the lines from a to b and from c to d cross."""

    def side(p: Spot, q: Spot, r: Spot) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _places(width: float, x: float, y: float) -> Iterator[Box]:
    """Right, left, above and below the point, then ever further away; the first of equals is taken."""
    for ring in range(RINGS):
        down = ring * LINE * 0.6
        for reach in (GAP, GAP + ring * 4, GAP + ring * 8) if ring else (GAP,):
            for shift in (-down, down) if ring else (0.0,):
                yield _box(x + reach, y + shift, width)
                yield _box(x - reach - width, y + shift, width)
        for shift in (-down - LINE, down + LINE):
            yield _box(x - width / 2, y + shift, width)


def _box(left: float, middle: float, width: float) -> Box:
    return Box(left, middle - LINE / 2, left + width, middle + LINE / 2)


def _label(name: str, spot: Spot, box: Box) -> Label:
    near = box.nearest(spot)
    leader = (round(near[0], 1), round(near[1], 1)) if dist(near, spot) > FAR else None
    # the end next to the point is where it should be, however wide the letters are
    if box.left > spot[0]:
        anchor, x = "start", box.left
    elif box.right < spot[0]:
        anchor, x = "end", box.right
    else:
        anchor, x = "middle", (box.left + box.right) / 2
    return Label(name, round(x, 1), round(box.bottom - 4, 1), anchor, leader)
