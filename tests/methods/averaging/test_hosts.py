"""GaC, UniTE and their sharpening against dictionaries of bytes, written from the papers' words and sharing no code."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pytest
import torch

import tiny_members
from fusionroute.errors import SettingsError
from fusionroute.methods.averaging import Gac, Unite, choose, host_of
from fusionroute.methods.averaging.host import Blend, Host, ensemble_logprobs
from tiny_members import Known

TOP = 10
END = "the end"
Key = bytes | str | tuple  # a string; END; or something that the drafter alone can write
SHARED = ["the", "then", " the", " then", "In", "Inc", "Incorrect", "Correct", " is", " it", "e", "é"]
WEIGHTS = {2: [(1.0, 1.0), (3.0, 1.0), (1.0, 0.0)], 3: [(1.0, 1.0, 1.0), (5.0, 3.0, 2.0), (2.0, 0.0, 1.0)]}
EVERY_CASE = [(count, weights, seed) for count, list_ in WEIGHTS.items() for weights in list_ for seed in range(8)]


@cache
def family() -> tuple[Known, ...]:
    """Three vocabularies: strings that only some have, letters with two tokens, ends of one, two and three ids."""
    return (
        tiny_members.byte_level("bytes", [*SHARED, " position", "orr", "ect"], ends=("<eos>", "<|im_end|>"), seed=1),
        tiny_members.with_fallback("pieces", [*SHARED, "orrect", "emble", "한국"], seed=2),
        tiny_members.byte_level(
            "others", ["Inco", " t", "ect", *SHARED], ends=("<|end|>", "</s>", "<|endoftext|>"), seed=3
        ),
    )


def made(kind: type, count: int, weights: Sequence[float]) -> tuple[Host, list[Known]]:
    known = list(family()[:count])
    return kind([each.member for each in known], weights), known


def spoken(known: Sequence[Known], seed: int) -> list[list[float]]:
    """Logits in which members mostly agree on strings; now and then halves, ends and padding rows are likely too."""
    dice = np.random.default_rng(seed)
    liking: dict[object, float] = {}
    said = []
    for each in known:
        own = []
        for at, text in enumerate(each.writes):
            key = "end" if at in each.ends else text
            base = liking.setdefault(key, float(dice.normal(0, 2)) + (3 if key == "end" or text in LIKED else 0))
            own.append(float(np.float32(base + dice.normal(0, 1))))
        said.append(own)
    return said


LIKED = {word.encode() for word in [*SHARED, " "]}


# The independent computation


def key_of(known: Known, token: int) -> Key | None:
    text = known.writes[token]
    if token in known.ends:
        return END
    if isinstance(text, bytes):
        try:
            text.decode()
        except UnicodeDecodeError:
            return ("half", text)
        return text
    return None if text is None else ("special", text)


def may_say(member: int, key: Key | None, drafter: Known) -> bool:
    """Specials are the drafter's own; of half characters a verifier may say those that the drafter has too."""
    if key is None or member == 0 or not isinstance(key, tuple):
        return key is not None
    return key[0] == "half" and key[1] in drafter.writes


def gac_by_hand(known: Sequence[Known], said: Sequence[Sequence[float]], shares: Sequence[float]) -> dict[Key, float]:
    found: dict[Key, float] = defaultdict(float)
    for member, (each, logits, share) in enumerate(zip(known, said, shares, strict=True)):
        total = math.fsum(math.exp(logit) for logit in logits)
        for token, logit in enumerate(logits):
            key = key_of(each, token)
            if may_say(member, key, known[0]):
                found[key] += share * math.exp(logit) / total
    return dict(found)


def likeliest_by_hand(
    known: Known, logits: Sequence[float], member: int, drafter: Known
) -> tuple[dict[Key, float], list[float]]:
    """What the member's likeliest tokens write, and the logits of those among them that it may not say."""
    found: dict[Key, float] = {}
    lost: list[float] = []
    for token in sorted(range(len(logits)), key=lambda token: -logits[token])[:TOP]:
        key = key_of(known, token)
        if may_say(member, key, drafter):
            found.setdefault(key, logits[token])
        else:
            lost.append(logits[token])
    if END in found:
        found[END] = ending_by_hand(known, logits)
    return found, lost


def ending_by_hand(known: Known, logits: Sequence[float]) -> float:
    return math.log(math.fsum(math.exp(logits[end]) for end in known.ends))


def unite_by_hand(known: Sequence[Known], said: Sequence[Sequence[float]], shares: Sequence[float]) -> dict[Key, float]:
    likeliest = [likeliest_by_hand(each, said[member], member, known[0]) for member, each in enumerate(known)]
    found: dict[Key, float] = dict.fromkeys((key for own, _ in likeliest for key in own), 0.0)
    for member, (each, logits, share) in enumerate(zip(known, said, shares, strict=True)):
        own, lost = likeliest[member]
        scores = {}
        for key in found:
            if key in own:
                scores[key] = own[key]
            elif key == END:
                scores[key] = ending_by_hand(each, logits)
            elif isinstance(key, bytes):
                scores[key] = logits[token_by_hand(each, key)]
            elif key[0] == "half" and key[1] in each.writes:
                scores[key] = logits[each.writes.index(key[1])]
        total = math.fsum(math.exp(score) for score in [*scores.values(), *lost])
        for key, score in scores.items():
            found[key] += share * math.exp(score) / total
    return found


def best_by_hand(found: Mapping[Key, float], drafter: Known, logits: Sequence[float]) -> Key:
    """The likeliest that may be written: half a character or a special only as the drafter's own first choice."""
    own = key_of(drafter, max(range(len(logits)), key=logits.__getitem__))
    allowed = [key for key in found if not isinstance(key, tuple) or key == own]
    return max(allowed, key=found.__getitem__)


def token_by_hand(known: Known, text: bytes) -> int:
    """The one that the tokenizer reads, else one that writes it though it is never read, else the first of several.

    A lone space in front of others says nothing of them.
    """
    read = known.ids(text.decode())
    if len(read) > 1 and text in known.writes:
        return known.writes.index(text)
    return read[1] if len(read) > 1 and known.writes[read[0]] == b" " else read[0]


def targets_by_hand(kind: type, drafter: Known, logits: Sequence[float]) -> set[bytes]:
    """Who may gain by prefix sharpening: strings of the drafter's, in UniTE its likeliest; never a lone space."""
    everything = {key_of(drafter, token) for token in range(len(drafter.writes))}
    return strings_in(everything if kind is Gac else set(likeliest_by_hand(drafter, logits, 0, drafter)[0])) - {b" "}


def strings_in(keys: set[Key | None]) -> set[bytes]:
    return {key for key in keys if isinstance(key, bytes)}


def sharpened_by_hand(average: Mapping[Key, float], targets: set[bytes], threshold: float) -> dict[Key, float]:
    if max(average.values()) >= 0.5:
        return dict(average)
    return {
        key: share
        + (
            sum(more for u, more in average.items() if isinstance(u, bytes) and u != key and u.startswith(key))
            if key in targets and share > threshold
            else 0
        )
        for key, share in average.items()
    }


def by_key(blend: Blend, host: Host, drafter: Known) -> dict[Key, float]:
    return {
        name_of(symbol, host, drafter): share
        for symbol, share in zip(blend.symbols.tolist(), blend.average.tolist(), strict=True)
    }


def name_of(symbol: int, host: Host, drafter: Known) -> Key | None:
    if symbol == host.union.end:
        return END
    if symbol < host.union.end:
        return host.union.bytes_of(symbol)
    return key_of(drafter, host.union.drafter_ids(symbol)[0])


BY_HAND = {Gac: gac_by_hand, Unite: unite_by_hand}


@pytest.mark.parametrize("kind", [Gac, Unite])
@pytest.mark.parametrize(("count", "weights", "seed"), EVERY_CASE)
def test_a_host_agrees_with_dictionaries(kind: type, count: int, weights: tuple[float, ...], seed: int) -> None:
    host, known = made(kind, count, weights)
    said = spoken(known, seed)
    shares = [weight / sum(weights) for weight in weights]
    expected = BY_HAND[kind](known, said, shares)
    blend = host.blend([torch.tensor(own) for own in said])
    found = by_key(blend, host, known[0])
    assert found.keys() == expected.keys()
    for key, share in expected.items():
        assert found[key] == pytest.approx(share, abs=2e-6), key
    assert (blend.symbols.diff() > 0).all()
    targets = {name_of(symbol, host, known[0]) for symbol in blend.symbols[blend.targets].tolist()}
    assert strings_in(targets) == targets_by_hand(kind, known[0], said[0])

    choice = choose(blend, host)
    best = best_by_hand(expected, known[0], said[0])
    assert name_of(choice.symbol, host, known[0]) == best
    log_probability = math.log(expected[best] / sum(expected.values()))
    logprob, _ = ensemble_logprobs(host, 0, choice.symbol, [torch.tensor(own) for own in said])
    assert logprob == pytest.approx(log_probability, abs=1e-5)
    given = [share * p for share, p in zip(shares, choice.support, strict=True)]
    assert choice.member == given.index(max(given))


@pytest.mark.parametrize("threshold", [0.02, 0.1])
@pytest.mark.parametrize("kind", [Gac, Unite])
def test_prefix_sharpening_agrees_with_dictionaries(kind: type, threshold: float) -> None:
    moved = 0
    for seed in range(40):
        host, known = made(kind, 3, (5, 3, 2))
        said = spoken(known, 100 + seed)
        average = BY_HAND[kind](known, said, [0.5, 0.3, 0.2])
        expected = sharpened_by_hand(average, targets_by_hand(kind, known[0], said[0]), threshold)
        best = best_by_hand(expected, known[0], said[0])
        choice = choose(host.blend([torch.tensor(own) for own in said]), host, "prefix", threshold)
        assert name_of(choice.symbol, host, known[0]) == best
        moved += best != best_by_hand(average, known[0], said[0])
    assert moved, "no case in which sharpening matters"


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_geometric_sharpening_agrees_with_dictionaries(kind: type) -> None:
    moved = 0
    for seed in range(40):
        host, known = made(kind, 2, (2, 1))
        said = spoken(known, 200 + seed)
        each = [BY_HAND[kind](known, said, [float(at == member) for at in range(2)]) for member in range(2)]
        average = {key: (2 * each[0].get(key, 0) + each[1].get(key, 0)) / 3 for key in each[0].keys() | each[1].keys()}
        product = {key: each[0].get(key, 0) ** (2 / 3) * each[1].get(key, 0) ** (1 / 3) for key in average}
        plain = best_by_hand(average, known[0], said[0])
        best = plain if max(average.values()) >= 0.5 else best_by_hand(product, known[0], said[0])
        choice = choose(host.blend([torch.tensor(own) for own in said]), host, "geometric")
        assert name_of(choice.symbol, host, known[0]) == best
        moved += best != plain
    assert moved, "no case in which sharpening matters"


# What is written


def sure_of(known: Sequence[Known], member: int, token: int) -> list[torch.Tensor]:
    """Logits in which one member is certain of a token and the others of nothing."""
    said = [torch.zeros(len(each.writes)) for each in known]
    said[member][token] = 30.0
    return said


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_what_the_drafter_lacks_it_writes_in_parts(kind: type) -> None:
    host, known = made(kind, 2, (0, 1))
    drafter, verifier = known
    choice = choose(host.blend(sure_of(known, 1, verifier.writes.index(b"orrect"))), host)
    parts = drafter.ids("orrect")
    assert len(parts) > 1
    assert choice.ids == (parts if kind is Gac else parts[:1])
    assert choice.member == 1


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_a_character_is_written_whole(kind: type) -> None:
    host, known = made(kind, 2, (0, 1))
    choice = choose(host.blend(sure_of(known, 1, known[1].writes.index("한국".encode()))), host)
    text = b"".join(known[0].writes[token] for token in choice.ids)
    assert text.decode() == ("한국" if kind is Gac else "한")


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_every_members_end_is_the_drafters(kind: type) -> None:
    host, known = made(kind, 3, (0, 1, 1))
    drafters_end = known[0].member.pieces.end_id
    for member in (1, 2):
        for end in known[member].ends:
            assert choose(host.blend(sure_of(known, member, end)), host).ids == [drafters_end]


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_ends_add_up_over_spellings(kind: type) -> None:
    """No end is likeliest by itself; together they are."""
    host, known = made(kind, 3, (1, 1, 1))
    said = [torch.full((len(each.writes),), -20.0) for each in known]
    for own, each in zip(said, known, strict=True):
        own[each.writes.index(b"the")] = 1.5
        for end in each.ends:
            own[end] = 1.0
    # the e^1.5 = 4.5 of it; ends 5.4, 2.7 and 8.2
    assert name_of(choose(host.blend(said), host).symbol, host, known[0]) == END


@pytest.mark.parametrize("kind", [Gac, Unite])
@pytest.mark.parametrize("is_drafters_choice", [True, False])
def test_half_a_character_is_written_only_where_the_drafter_would(kind: type, is_drafters_choice: bool) -> None:
    host, known = made(kind, 2, (1, 3))
    half = known[0].writes.index(b"\xed")
    said = [torch.zeros(len(each.writes)) for each in known]
    said[0][half], said[0][known[0].writes.index(b"the")] = (11.0, 10.0) if is_drafters_choice else (10.0, 11.0)
    said[1][known[1].writes.index(b"\xed")] = 30.0
    said[1][known[1].writes.index("<unk>")] = 28.0
    blend = host.blend(said)
    found = by_key(blend, host, known[0])
    assert found[("half", b"\xed")] > 0.65, "both models say it"
    assert ("special", "<unk>") not in found
    assert float(blend.each[1].sum()) == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-4), "what it may not say is lost"
    best = name_of(choose(blend, host).symbol, host, known[0])
    assert best == (("half", b"\xed") if is_drafters_choice else b"the")


@pytest.mark.parametrize("kind", [Gac, Unite])
def test_what_a_model_excludes_is_no_candidate_or_has_nothing(kind: type) -> None:
    host, known = made(kind, 2, (1, 1))
    said = [torch.full((len(each.writes),), float("-inf")) for each in known]
    said[0][known[0].writes.index(b"the")] = 1.0
    said[1][known[1].writes.index(b" is")] = 1.0
    found = {key: share for key, share in by_key(host.blend(said), host, known[0]).items() if share}
    assert found == pytest.approx({b"the": 0.5, b" is": 0.5})
    said[1][:] = float("-inf")  # all but what it may not say
    said[1][known[1].writes.index("<unk>")] = 0.0
    assert name_of(choose(host.blend(said), host).symbol, host, known[0]) == b"the"


# Settings


def test_what_is_refused() -> None:
    members = [known.member for known in family()[:2]]
    with pytest.raises(SettingsError, match=r"host: unknown option 'unit'; did you mean 'unite'\?"):
        host_of("unit", members)
    with pytest.raises(SettingsError, match=r"gate=0\.4 is an option of host gac and does nothing in unite"):
        host_of("unite", members, gate=0.4)
    with pytest.raises(SettingsError, match=r"gate is a probability above 0, up to 1, or none; got 1\.5"):
        host_of("gac", members, gate=1.5)
    with pytest.raises(SettingsError, match="top is at least 1; got 0"):
        Unite(members, top=0)
    for kind in (Gac, Unite):
        with pytest.raises(SettingsError, match=r"3 weights came for 2 models \(bytes, pieces\); give one for each"):
            kind(members, [1, 2, 3])
        for bad in ([1, -1], [0, 0], [float("nan"), 1]):
            with pytest.raises(SettingsError, match="weights are 0 or more, at least one of them above 0"):
                kind(members, bad)


def test_gates() -> None:
    members = [known.member for known in family()[:2]]
    gates = [host_of("gac", members).gate, host_of("gac", members, gate=None).gate, host_of("unite", members).gate]
    assert gates == [0.5, None, None]
