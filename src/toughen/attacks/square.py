"""Square Attack (Andriushchenko et al. 2020): a black-box attack, random search that asks a model for logits only.

A query changes the pixels of a random square, and the change stays where it raises the margin, max_{k != y} z_k - z_y.
The squares shrink as the queries go by.

    x_adv = square(model, x, y, threat=Linf(8 / 255), queries=5000)

All examples ask at once, each with places and signs of its own, drawn for many queries ahead; a query reads and writes
the pixels of the squares alone, so that nearly all the time goes to the model.

Deviations from the paper's algorithms and code:

- A square can lie on any place of the image; their code never reaches the last row and column. An example tries no
  place of a size twice before it has tried them all, where they draw independently: that is worth 5 of 100 breakable
  examples at 500 queries (docs/methods/black_box.md, How strong they are), most of it from single pixels, of which
  independent draws miss a third.
- A square of the Linf ball that would change nothing is put with the opposite signs. The paper's code draws again
  until something changes, the PyTorch ports waste the query: with one channel that is half of all single pixels.
- In the L2 ball, orientation is drawn per example (per batch in the ports), and what the window is given comes out of
  the norm that is there, so that no query rescales the whole image.
- p follows the schedule stretched to the number of queries, as in the paper. AutoAttack switches this off, and so does
  the suite of that name (`stretch`): with few queries its squares stay large, which is why it finds 63 where others
  find 96 of 170 with 500 on the same problem.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toughen.attacks.compaction import Leaving, waits, write
from toughen.attacks.contract import attack
from toughen.devices import sent
from toughen.losses import hard, margin
from toughen.models.batched import predict
from toughen.modes import attacking
from toughen.noise import Stream, fixed
from toughen.settings import Count, Share
from toughen.threat import Threat, of_each

# After which of 10,000 queries p is halved (section 3.4 of the paper).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
SCHEDULED = 10_000

# Queries for which an example draws at once: a draw costs as much as thousands of its numbers.
BLOCK = 256

Change = tuple[Tensor, Tensor, Tensor]
"""Where in the flat images (n, m), what is there, and what a query puts there; of several, the last one counts."""

Corner = tuple[Tensor, Tensor]
"""Row and column (n,) of the upper left pixels of squares."""


def share(query: int, queries: int, p_init: float) -> float:
    """p, the share of an image's pixels that a square covers: p_init, halved as often as the schedule says.

    Args:
        query: squares tried before this one.
        queries: the number on which the schedule for 10,000 is stretched.
        p_init: the share at the start.
    """
    return p_init / 2 ** sum(query * SCHEDULED // queries > mark for mark in HALVINGS)


def _linf_side(pixels: float) -> int:
    return max(round(math.sqrt(pixels)), 1)


def _l2_side(pixels: float) -> int:
    # Odd, so that a bump has a centre.
    return max(round(math.sqrt(pixels)), 3) // 2 * 2 + 1


def _signs(u: Tensor, like: Tensor) -> Tensor:
    """-1 or 1 with the type of `like`, from u in [-1, 1)."""
    return (u >= 0).to(like.dtype) * 2 - 1


def _pick(u: Tensor, count: int) -> Tensor:
    """Uniform in 0 .. count - 1, from u in [-1, 1)."""
    return ((u + 1) / 2 * count).long()


@dataclass(frozen=True)
class Window:
    """The squares of one size on images of one shape.

    Attributes:
        shape: of an image, (C, H, W).
        side: of the square, in pixels.
        cells: flat positions (C * side * side,) of the square in the upper left corner, channel by channel.
        bumps: the two patterns of the L2 ball, (2, side, side).
    """

    shape: torch.Size
    side: int
    cells: Tensor
    bumps: Tensor

    @property
    def places(self) -> tuple[int, int]:
        """In how many rows and columns the upper left corner can lie."""
        return self.shape[1] - self.side + 1, self.shape[2] - self.side + 1

    def at(self, top: Tensor, left: Tensor) -> Tensor:
        """Flat positions (n, C * side * side) of the squares with these corners (n,)."""
        return (top * self.shape[2] + left).unsqueeze(1) + self.cells


def _window(shape: torch.Size, side: int, like: Tensor) -> Window:
    index = torch.arange(shape.numel(), device=like.device).reshape(shape)
    return Window(shape, side, index[:, :side, :side].reshape(-1), sent(bumps(side).to(like.dtype), like.device))


@dataclass(frozen=True)
class PlaceOrder:
    """An order in which each example tries all places of a window: place k is (start + k stride) mod their number.

    With a stride that shares no divisor with that number, no place comes twice before all have come once.

    Attributes:
        window: the squares.
        stride: (n,).
        start: (n,).
        since: queries tried before it began.
    """

    window: Window
    stride: Tensor
    start: Tensor
    since: int

    def corner(self, tried: int) -> tuple[Tensor, Tensor]:
        """Row and column (n,) of the upper left corners after so many queries in all."""
        rows, columns = self.window.places
        place = (self.start + (tried - self.since) * self.stride) % (rows * columns)
        return place // columns, place % columns

    def __getitem__(self, rows: Tensor) -> "PlaceOrder":
        return PlaceOrder(self.window, self.stride[rows], self.start[rows], self.since)


def _place_order(window: Window, noise: Stream, since: int) -> PlaceOrder:
    count = math.prod(window.places)
    strides = torch.arange(1, count + 1)
    strides = strides[torch.gcd(strides, torch.tensor(count)) == 1]
    u, device = noise.uniform((2,)), window.cells.device
    stride = sent(strides, u.device)[_pick(u[:, 0], len(strides))]
    return PlaceOrder(window, sent(stride, device), sent(_pick(u[:, 1], count), device), since)


def _stripes(x: Tensor, noise: Stream) -> Tensor:
    """Vertical stripes of one pixel, each with a sign per channel: (N, C, H, W)."""
    u = sent(noise.uniform((x.shape[1], 1, x.shape[3])), x.device)
    return _signs(u, x).expand_as(x)


def _filled(x: Tensor, x_adv: Tensor, eps: Tensor, corner: Corner, u: Tensor, window: Window) -> list[Change]:
    """Algorithm 2 of the paper: a square at a corner of the Linf ball, one sign per channel."""
    at = window.at(*corner)
    old, clean = x_adv.gather(1, at), x.gather(1, at).reshape(len(x), window.shape[0], -1)
    step = (_signs(u, x) * eps.unsqueeze(1)).unsqueeze(2)
    new = (clean + step).clamp_(0, 1).flatten(1)
    idle = (new == old).all(1)
    if waits(x.device):
        new = torch.where(idle.unsqueeze(1), (clean - step).clamp_(0, 1).flatten(1), new)
    else:
        idle = idle.nonzero().squeeze(1)
        new[idle] = (clean[idle] - step[idle]).clamp_(0, 1).flatten(1)
    return [(at, old, new)]


def _pyramid(rows: int, columns: int) -> Tensor:
    """Nested rectangles around the centre, the k-th of weight 1 / k^2 (the paper's equation for eta)."""
    high, wide = rows // 2, columns // 2
    up = (torch.arange(rows, dtype=torch.float64) - high).abs()
    across = (torch.arange(columns, dtype=torch.float64) - wide).abs()
    ring = torch.maximum(up.unsqueeze(1), across.unsqueeze(0)).long()
    weights = torch.arange(1, max(high, wide) + 2, dtype=torch.float64).pow(-2)
    # A cell of ring r lies in the rectangles r, r + 1, ...: the weights' sum from there on.
    return weights.flip(0).cumsum(0).flip(0)[ring]


def bumps(side: int) -> Tensor:
    """The pattern eta of the L2 ball in both orientations, (2, side, side) in float64, each of norm 1.

    Its two halves are pyramids of equal norm and opposite sign.
    """
    upper, lower = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    pattern = torch.cat([upper / upper.norm() if len(upper) else upper, -lower / lower.norm()])
    pattern = pattern / pattern.norm()
    return torch.stack([pattern, pattern.T])


def _tiles(x: Tensor, noise: Stream) -> Tensor:
    """A grid of bumps, five to the image's shorter side, each with a sign per channel: (N, C, H, W)."""
    n, c, h, w = x.shape
    side = max(min(h, w) // 5, 1)
    down, across = h // side, w // side
    u = sent(noise.uniform((c + 1, down, across)), x.device)
    pattern = sent(bumps(side).to(x.dtype), x.device)[(u[:, 0] >= 0).long()]
    signed = _signs(u[:, 1:], x)[..., None, None] * pattern.unsqueeze(1)
    grid = signed.transpose(3, 4).reshape(n, c, down * side, across * side)
    delta, top, left = torch.zeros_like(x), (h - down * side) // 2, (w - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return delta


def _within(distance: Tensor, side: int) -> Tensor:
    """Which rows (or columns) of a window that starts at `distance` (n,) lie in the one that starts at 0: (n, side)."""
    positions = distance.unsqueeze(1) + torch.arange(side, device=distance.device)
    return (positions >= 0) & (positions < side)


def _moved(x: Tensor, x_adv: Tensor, eps: Tensor, corner: Corner, u: Tensor, window: Window) -> list[Change]:
    """Algorithm 3 of the paper: a bump more in one window, paid for by emptying another.

    What the other window had, and what clipping to [0, 1] has left unused of eps^2, goes to the first one.
    """
    side, channels = window.side, window.shape[0]
    (top, left), (top2, left2) = corner, (_pick(u[:, i], places) for i, places in enumerate(window.places))
    at, at2 = window.at(top, left), window.at(top2, left2)
    old, old2, clean, clean2 = x_adv.gather(1, at), x_adv.gather(1, at2), x.gather(1, at), x.gather(1, at2)
    delta, delta2 = (v.reshape(-1, channels, side, side) for v in (old - clean, old2 - clean2))
    both = _within(top2 - top, side).unsqueeze(2) & _within(left2 - left, side).unsqueeze(1)
    # Below zero where rounding has put an example outside the ball: that brings it back.
    unused = (eps.square() - torch.linalg.vector_norm(x_adv - x, dim=1).square()).reshape(-1, 1, 1, 1) / channels
    inside, emptied = (v.square().sum((2, 3), keepdim=True) for v in (delta, delta2 * ~both.unsqueeze(1)))
    room = (unused + inside + emptied).clamp(min=0)
    pattern = window.bumps[(u[:, 2] >= 0).long()].unsqueeze(1) * _signs(u[:, 3:], x)[..., None, None]
    bump = pattern + delta / (inside.sqrt() + 1e-12)
    length = bump.square().sum((2, 3), keepdim=True).sqrt()
    # A window that holds nothing but the opposite bump would leave only rounding.
    gone = length < 1e-3
    bump = torch.where(gone, pattern, bump) * (room.sqrt() / torch.where(gone, 1.0, length))
    return [(at2, old2, clean2), (at, old, (clean + bump.flatten(1)).clamp(0, 1))]


@dataclass(frozen=True)
class NormMoves:
    """How the search starts and moves in balls of one norm.

    Attributes:
        start: (x, noise) -> the direction to start in, of the shape of x.
        side: number of pixels that a square should have -> its side.
        numbers: random numbers of a query, besides a sign per channel.
        slack: by how many units in the last place of 1 the radius is shortened, so that the rounding of the pixels,
            which the norm sums up, does not leave the ball.
        propose: (x, x_adv, eps, corner, numbers, window) on flat images -> what a query changes.
    """

    start: Callable[[Tensor, Stream], Tensor]
    side: Callable[[float], int]
    numbers: int
    slack: int
    propose: Callable[[Tensor, Tensor, Tensor, Corner, Tensor, Window], list[Change]]


MOVES = {"linf": NormMoves(_stripes, _linf_side, 0, 0, _filled), "l2": NormMoves(_tiles, _l2_side, 3, 2, _moved)}


def _judge(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Margins (n,), -inf where they are no number, and whether each example is misclassified."""
    logits = predict(model, x)
    gain = margin(logits, y).to(x)
    return torch.where(gain.isnan(), -torch.inf, gain), logits.argmax(1) != y


def _search(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, queries: int, p_init: float, horizon: int, noise: Stream
) -> tuple[Tensor, Tensor, Tensor]:
    """One run: the last accepted images (N, C, H, W), their margins (N,) and which are broken (N,)."""
    moves, shape = MOVES[threat.norm], x.shape[1:]
    direction = threat.steepest(moves.start(x, noise.child("start")))
    eps = of_each(threat.eps, x)
    eps = (eps - moves.slack * torch.finfo(x.dtype).eps).clamp(min=0)
    start = (x + eps.reshape(-1, 1, 1, 1) * direction).clamp(0, 1)
    highest, gone = _judge(model, start, y)

    result, margins, broken = start.clone(), highest.clone(), gone.clone()
    rows = slots = torch.arange(len(x), device=x.device)
    clean, x_adv = x.flatten(1).contiguous(), start.flatten(1).contiguous()
    order, numbers, leaving = None, clean, Leaving(model)
    for tried in range(queries - 1):
        if (stay := leaving.stay(gone, passes=1)) is not None:
            write(result, rows, gone, x_adv.reshape(-1, *shape))
            write(margins, rows, gone, highest)
            broken[rows] = gone
            rows, slots, clean, x_adv, eps, y = (v[stay] for v in (rows, slots, clean, x_adv, eps, y))
            highest, gone, order = highest[stay], gone[stay], order and order[stay]
        if not len(rows):
            break
        if tried % BLOCK == 0:
            ahead = min(BLOCK, queries - 1 - tried)
            drawn = noise[rows].child("squares", tried).uniform((ahead, moves.numbers + shape[0]))
            numbers = sent(drawn.transpose(0, 1).contiguous(), x.device)
            slots = torch.arange(len(rows), device=x.device)
        side = min(moves.side(share(tried, horizon, p_init) * shape[1] * shape[2]), *shape[1:])
        if order is None or order.window.side != side:
            order = _place_order(_window(shape, side, x), noise[rows].child("walk", side), tried)
        changes = moves.propose(clean, x_adv, eps, order.corner(tried), numbers[tried % BLOCK][slots], order.window)
        for at, _, new in changes:
            x_adv.scatter_(1, at, new)
        gain, fooled = _judge(model, x_adv.reshape(-1, *shape), y)
        # What is broken stays as it broke.
        accepted = ~gone & (fooled | (gain > highest))
        highest, gone = torch.where(accepted, gain, highest), gone | fooled
        for at, old, new in changes:
            x_adv.scatter_(1, at, torch.where(accepted.unsqueeze(1), new, old))
    result[rows], margins[rows], broken[rows] = x_adv.reshape(-1, *shape), highest, gone
    return result, margins, broken


@attack
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: Count = 5000,
    p_init: Share = 0.8,
    stretch: bool = True,
    restarts: Count = 1,
    noise: Stream | None = None,
) -> Tensor:
    """Square Attack: random search over squares, without gradients (Andriushchenko et al. 2020, algorithms 1 to 3).

    Args (all else as for `pgd`):
        y: classes (N,) or probabilities (N, K), of which the most probable class counts.
        threat: the ball, with one radius for all or one per example. An example with a radius of 0 costs nothing.
        queries: forward passes of each restart, the one at its start included. A broken example takes no more.
        p_init: share of the pixels that the first squares cover.
        stretch: stretch the schedule by which squares shrink to the number of queries; otherwise it is that for 10,000.
        restarts: independent runs, each on the examples not yet broken.

    Returns:
        x_adv (N, C, H, W), in the ball and in [0, 1]: misclassified, or else the point of the highest margin found.
    """
    noise = fixed(len(x), device=x.device) if noise is None else noise
    x, classes = x.detach(), hard(y)
    best, highest = x.clone(), x.new_full((len(x),), -torch.inf)
    rows = (of_each(threat.eps, x) > 0).nonzero().squeeze(1)
    horizon = queries if stretch else SCHEDULED
    with attacking(model, "eval"):
        for restart in range(restarts):
            if not len(rows):
                break
            part = noise[rows].child("square", restart)
            found, gain, broken = _search(model, x[rows], classes[rows], threat[rows], queries, p_init, horizon, part)
            better = broken | (gain > highest[rows])
            write(best, rows, better, found)
            write(highest, rows, better, gain)
            rows = rows[(~broken).nonzero().squeeze(1)]
    return best
