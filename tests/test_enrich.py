"""What a transcript tells by counting, against numbers counted by hand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aftercall.call import Call, Metrics, ResponseTime, Role, Tool, Turn
from aftercall.enrich import enrich, metrics, words


def said(role: Role, text: str | None, start_ms: int | None = None, end_ms: int | None = None) -> Turn:
    return Turn(role=role, text=text, start_ms=start_ms, end_ms=end_ms)


def test_a_whole_call_is_counted_as_by_hand() -> None:
    transcript = [
        said("agent", "Quay desk, good morning.", 0, 2000),  # 4 words, 2.0 s
        said("user", "Hi, I'd like a berth.", 2600, 4600),  # 5 words, 2.0 s, 0.6 s after
        Turn(role="agent", text="For how long?", start_ms=5800, end_ms=6800, interrupted=True),  # 3, 1.0 s; 1.2 s
        Turn(role="user", text="Two nights", start_ms=6500, end_ms=7500, interrupted=False),  # 2, 1.0 s; overlaps
        Turn(role="tool", start_ms=7600, end_ms=9000, tool=Tool(name="free_berths", ok=True)),
        Turn(role="tool", tool=Tool(name="book", ok=False)),
        Turn(role="tool", tool=Tool(name="mail", ok=None)),
        Turn(role="system", text="node_transition: Booking"),
        said("agent", "Booked: berth B-12.", 10_500, 12_500),  # 3 words, 2.0 s; 3.0 s after
    ]
    assert metrics(transcript) == Metrics(
        turns=5,
        user_words=7,
        agent_words=10,
        talk_ratio=0.625,  # 5.0 s of 8.0 s
        interruptions=1,
        longest_silence_ms=3000,
        response_ms=ResponseTime(p50=1200, p95=3000, max=3000),
        tool_calls=3,
        tool_failures=1,
    )


def test_percentiles_are_by_nearest_rank() -> None:
    transcript, at = [], 0
    for wait_ms in (900, 100, 500, 300, 700, 1100, 200, 400, 600, 800):
        transcript += [said("user", "a", at, at + 1000), said("agent", "b", at + 1000 + wait_ms, at + 3000)]
        at += 10_000
    assert metrics(transcript).response_ms == ResponseTime(p50=500, p95=1100, max=1100)


def test_an_agent_that_began_before_the_user_had_ended_answered_at_once() -> None:
    found = metrics([said("user", "well, I was", 0, 4000), said("agent", "sorry?", 3000, 5000)])
    assert found.response_ms == ResponseTime(p50=0, p95=0, max=0)
    assert found.longest_silence_ms == 0


def test_a_word_thrown_in_does_not_make_a_silence_of_the_long_turn_around_it() -> None:
    found = metrics(
        [said("user", "a long story", 0, 20_000), said("agent", "mhm", 5000, 5500), said("agent", "so", 21_000, 22_000)]
    )
    assert found.longest_silence_ms == 1000
    assert found.response_ms == ResponseTime(p50=0, p95=0, max=0)


def test_turns_out_of_order_are_put_in_order() -> None:
    turns = [said("agent", "b", 3000, 4000), said("user", "a", 0, 1000)]
    assert metrics(turns) == metrics(turns[::-1])
    assert metrics(turns).response_ms == ResponseTime(p50=2000, p95=2000, max=2000)


def test_without_times_what_needs_them_is_unknown_and_the_rest_is_counted() -> None:
    found = metrics([said("agent", "Good morning."), said("user", "Good morning!", start_ms=900)])
    assert (found.turns, found.user_words, found.agent_words) == (2, 2, 2)
    assert (found.talk_ratio, found.longest_silence_ms, found.response_ms, found.interruptions) == (None,) * 4


def test_one_timed_turn_has_a_share_but_no_silence() -> None:
    found = metrics([said("agent", "Hello?", 500, 1500)])
    assert (found.talk_ratio, found.longest_silence_ms, found.response_ms) == (1.0, None, None)


def test_turns_of_no_length_have_no_share() -> None:
    assert metrics([said("agent", "a", 0, 0), said("user", "b", 5, 5)]).talk_ratio is None


def test_a_turn_that_ends_before_it_starts_does_not_count_backwards() -> None:
    found = metrics([said("agent", "a", 0, 1000), said("user", "b", 3000, 2000)])
    assert found.talk_ratio == 1.0
    assert found.longest_silence_ms == 2000


def test_a_provider_that_says_nothing_about_interruptions_is_not_counted_as_none() -> None:
    assert metrics([said("agent", "a")]).interruptions is None
    assert metrics([Turn(role="agent", text="a", interrupted=False)]).interruptions == 0


def test_an_empty_transcript_has_counts_of_nothing() -> None:
    assert metrics([]) == Metrics(turns=0, user_words=0, agent_words=0, tool_calls=0, tool_failures=0)


def test_a_call_without_a_transcript_has_no_metrics() -> None:
    call = Call(id="c", provider="retell", account="a", status="ended")
    assert enrich(call) is call
    assert enrich(call).metrics is None


def test_a_call_with_a_transcript_gets_its_metrics_and_nothing_else() -> None:
    call = Call(id="c", provider="retell", account="a", status="ended", transcript=[said("user", "hello there")])
    enriched = enrich(call)
    assert enriched.metrics is not None
    assert enriched.metrics.user_words == 2
    assert msgspec.structs.replace(enriched, metrics=None) == call


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (None, 0),
        ("", 0),
        ("  … — !?", 0),
        ("one", 1),
        ("I don't know, it’s well-known.", 5),
        ("room 12, berth B-12", 4),
        ("née Ünal", 2),
        ("привет, мир", 2),
        ("안녕하세요 세계", 2),
        ("مرحبا بالعالم", 2),
        ("你好，世界。", 4),
        ("こんにちは", 5),
        ("call 李 now", 3),
        ("OK谢谢", 3),
    ],
)
def test_words_are_counted_in_scripts_with_and_without_spaces(text: str | None, count: int) -> None:
    assert words(text) == count


@pytest.mark.parametrize(
    "text",
    ["नमस्ते दुनिया", "তুমি কেমন", "வணக்கம் நண்பா", "مَرْحَبًا بِكُمْ", "שָׁלוֹם עוֹלָם", "re\u0301sume\u0301 cafe\u0301"],
    ids=["Hindi", "Bengali", "Tamil", "Arabic with vowels", "Hebrew with vowels", "decomposed Latin"],
)
def test_marks_above_and_below_letters_do_not_part_words(text: str) -> None:
    assert words(text) == 2


TIMES = st.none() | st.integers(-1000, 10_000_000)
TURNS = st.builds(
    Turn,
    role=st.sampled_from(["user", "agent", "tool", "system"]),
    text=st.none() | st.text(max_size=40),
    start_ms=TIMES,
    end_ms=TIMES,
    interrupted=st.none() | st.booleans(),
    tool=st.none() | st.builds(Tool, ok=st.none() | st.booleans()),
)


@given(st.lists(TURNS, max_size=30))
def test_whatever_the_transcript_the_metrics_hold_together(transcript: list[Turn]) -> None:
    found = metrics(transcript)
    spoken = [turn for turn in transcript if turn.role in ("user", "agent")]
    assert found.turns == len(spoken)
    assert found.user_words + found.agent_words == sum(words(turn.text) for turn in spoken)
    assert 0 <= found.tool_failures <= found.tool_calls <= len(transcript)
    assert found.interruptions is None or 0 <= found.interruptions <= found.turns
    assert found.talk_ratio is None or 0 <= found.talk_ratio <= 1
    assert found.longest_silence_ms is None or found.longest_silence_ms >= 0
    if found.response_ms is not None:
        assert 0 <= found.response_ms.p50 <= found.response_ms.p95 <= found.response_ms.max


@given(st.lists(TURNS, max_size=30))
def test_metrics_of_metrics_are_the_same_and_survive_json(transcript: list[Turn]) -> None:
    call = Call(id="c", provider="retell", account="a", status="ended", transcript=transcript)
    once = enrich(call)
    assert enrich(once) == once
    assert msgspec.json.decode(msgspec.json.encode(once.metrics), type=Metrics) == once.metrics


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), max_size=20))
def test_as_many_words_are_found_as_were_joined_by_spaces(joined: list[str]) -> None:
    assert words(" ".join(joined)) == len(joined)
