"""The examples: their programs on a scripted engine, then each of them for real."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import agent
import character_sheet
import few_shot_eval
import role_play_chat
import serving
import tree_of_thought

from ramify.lang.backends.scripted import ScriptedEngine

EXAMPLES = Path(serving.__file__).parent

# --- the calculator ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("24 * 17", "408"),
        (" 2 + 3 * (4 - 1) ", "11"),
        ("-7 // 2", "-4"),
        ("7 % 4", "3"),
        ("1 / 8", "0.125"),
        ("0.1 + 0.2", "0.3"),
        ("--5", "5"),
    ],
)
def test_the_calculator_is_right(expression, value):
    assert agent.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2 +",
        "two + two",
        "__import__('os').getcwd()",
        "(1).__class__",
        "'a' * 3",
        "[1] * 3",
        "True + 1",
        "9 ** 9 ** 9",  # would never end
        "1 << 99",
        "1 / 0",
        "1e999",
        "9" * 70,
        "+".join("1" * 80),
        "(" * 90 + "1",
        "1; 2",
        "x := 1",
        "lambda: 1",
        "\0",
    ],
)
def test_the_calculator_runs_nothing_and_never_raises(expression):
    assert agent.calculate(expression).startswith("error: ")


def test_numbers_stay_bounded_on_the_way():
    """Each factor is allowed; their product is not, so no expression can grow without end."""
    assert agent.calculate("9" * 40 + "*" + "9" * 40) == "error: a number has more than 60 digits"


# --- the programs on a script --------------------------------------------------------------------


def test_the_agent_hands_the_action_to_the_tool_and_the_result_to_the_model():
    said = {
        "Question: eggs?\nThought:": " multiply.\nAction: calculate[24 * 17]\nObservation: 9",
        "Observation: 408\nThought:": " I know.\nFinal Answer: 408\n\nQuestion: next",
    }
    state = agent.agent.run("eggs?", 5, backend=ScriptedEngine(said))
    assert state.ret_value == "408"
    assert "step 1" in state
    assert "step 2" not in state, "the loop ends with the answer"
    observed = state.text().removeprefix(agent.PROMPT).count("Observation:")
    assert observed == 1, "the model does not write its own observations"


def test_the_agent_gives_up_politely_when_the_model_writes_nonsense():
    engine = ScriptedEngine({"": " bananas!"})
    state = agent.agent.run("eggs?", 3, backend=engine)
    assert state.ret_value is None
    assert len(engine.requests) == 3
    assert state.text().count("error: write an action like calculate[2 + 3]") == 3


def test_accuracy_counts_the_answers_that_the_model_prefers():
    questions = [
        few_shot_eval.Question("colour?", ["red", "green"], "green"),
        few_shot_eval.Question("size?", ["small", "large"], "large"),
        few_shot_eval.Question("taste?", ["sweet", "sour"], "sweet"),
    ]
    liked = {" green", " small", " sweet"}
    engine = ScriptedEngine(logprob=lambda _, token: -0.1 if token in liked else -9.0)
    answers = few_shot_eval.evaluate(engine, questions[:1], questions)
    assert answers == ["green", "small", "sweet"], "in the order of the questions"
    assert few_shot_eval.accuracy(answers, questions) == pytest.approx(2 / 3)
    assert few_shot_eval.wrong_table(answers, questions).row_count == 1
    shots = "Question: colour?\nAnswer: green\n\nQuestion: "
    assert engine.requests[0]["prompt"].endswith(shots), "what all share is computed first"


def test_the_questions_can_be_answered():
    questions = few_shot_eval.read_questions(serving.DATA / "questions.jsonl")
    assert 48 <= len(questions) <= 60
    assert len({q.question for q in questions}) == len(questions)
    for q in questions:
        assert q.choices.count(q.answer) == 1
        assert len(set(q.choices)) == len(q.choices) >= 2
    places = [q.choices.index(q.answer) for q in questions]
    assert max(map(places.count, set(places))) < 0.6 * len(places), "no place to always bet on"


def test_the_tree_follows_the_branch_that_is_scored_best():
    """Of three sentences at each level the one that is called good is the one that goes on."""
    numbers = count()

    def script(prompt):
        return " a good turn." if (n := next(numbers)) % 3 == 1 else f" a bad turn {n}."

    def logprob(before, token):
        last = before.rsplit("turn", 1)[0].endswith("good ")
        return -0.1 if (token == " yes") == last else -5.0

    engine = ScriptedEngine(script, logprob=logprob)
    state = tree_of_thought.grow.run("It began.", width=3, depth=2, backend=engine)
    root = state.ret_value
    for level in (root, tree_of_thought.best(root.children)):
        assert len(level.children) == 3
        assert tree_of_thought.best(level.children).text == "a good turn."
    assert all(not thought.children for thought in root.children if "bad" in thought.text)
    assert state.text().endswith("It began. a good turn. a good turn.")


def test_a_sheet_is_read_from_what_the_model_wrote():
    gear = {"item": "old rope", "weight": 3}
    sheet = {"name": "Mira", "class": "thief", "mood": "merry", "age": 20, "goal": "go home"}
    engine = ScriptedEngine({"Mira:\n": json.dumps(sheet | {"gear": gear})})
    [filled] = character_sheet.fill.run(["Mira"], backend=engine).ret_value
    assert filled.sheet.kind is character_sheet.Class.thief
    assert filled.sheet.gear.weight == 3
    assert character_sheet.table([filled]).row_count == 1
    sent = json.loads(engine.requests[-1]["sampling_params"]["json_schema"])
    assert list(sent["properties"]) == ["name", "class", "mood", "age", "goal", "gear"]


# --- for real ------------------------------------------------------------------------------------

SMALL = ("--threads", "1", "--max-total-tokens", "8192")


@pytest.fixture(scope="module")
def url(smollm2):
    """A server of its own, as an example starts one."""
    with serving.server(*SMALL) as address:
        yield address


@pytest.fixture
def runs_on(url):
    with serving.RuntimeEndpoint(url) as endpoint:
        assert endpoint.flush_cache()
        yield endpoint


@pytest.mark.model
def test_every_user_after_the_first_reuses_the_whole_character_sheet(runs_on):
    chats = {"Ana": ["Hello!", "Is it late?"], "Bela": ["Good night!"], "Chidi": ["Ahoy!"]}
    with serving.metered(runs_on) as usage:
        run = role_play_chat.talk(runs_on, chats, max_new_tokens=8, min_new_tokens=8)
    sheet = len(tokens(runs_on, role_play_chat.CHARACTER))
    first = [turn for turn in run.turns if turn.number == 1]
    assert sorted(turn.reused >= sheet for turn in first) == [False, True, True]
    assert min(turn.reused for turn in first) == 0, "the cache was empty"
    (second,) = (turn for turn in run.turns if turn.number == 2)
    assert second.reused >= first[0].prompt - 1, "the own first turn too"
    assert [turn.generated for turn in run.turns] == [8] * 4
    for turn in run.turns:
        assert 0 < turn.computed == turn.prompt - turn.reused
        assert 0 < turn.ttft_s <= run.seconds
    told = (run.total("prompt"), run.total("reused"), run.total("generated"))
    assert told == (usage.prompt, usage.reused, usage.generated), "the engine counts the same"
    assert usage.computed < 2 * sheet


def tokens(runs_on, text):
    """The tokens of a text, by the server's own count."""
    meta = runs_on.engine.generate(text, {"max_new_tokens": 0})["meta_info"]
    return range(meta["prompt_tokens"])


@pytest.mark.model
@pytest.mark.parametrize(
    ("example", "arguments", "words"),
    [
        (role_play_chat, ["--users", "2", "--turns", "1", "--max-tokens", "6"], "from the cache"),
        (few_shot_eval, ["--shots", "4", "--limit", "4"], "of 4 questions"),
        (agent, ["--max-steps", "2"], "prompt tokens of each step"),
        (tree_of_thought, ["--width", "2", "--depth", "2"], "computed"),
        (character_sheet, ["Mira", "Old Tom"], "tokens were jumped over"),
    ],
)
def test_each_example_runs_on_a_server(url, capsys, example, arguments, words):
    assert example.main(["--url", url, *arguments]) == 0
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.model
def test_the_steps_of_the_agent_find_the_transcript_in_the_cache(runs_on):
    options = {"temperature": 0.0, "max_new_tokens": 32}
    state = agent.agent.run(agent.QUESTION, 3, backend=runs_on, **options)
    metas = [state.get_meta_info(f"step {step}") for step in range(3)]
    one, two = [meta for meta in metas if meta is not None][:2]
    assert two["cached_tokens"] >= one["prompt_tokens"]
    assert 0 < two["prompt_tokens"] - two["cached_tokens"] < 60, "the observation, and little more"


@pytest.mark.model
def test_an_evaluation_reuses_its_examples_for_every_question(runs_on):
    questions = few_shot_eval.read_questions(serving.DATA / "questions.jsonl")
    with serving.metered(runs_on) as usage:
        answers = few_shot_eval.evaluate(runs_on, questions[:8], questions[8:16])
    assert all(a in q.choices for a, q in zip(answers, questions[8:16], strict=True))
    assert few_shot_eval.accuracy(answers, questions[8:16]) >= 0.5, "guessing gives a third"
    assert usage.reused > 0.7 * usage.prompt
    assert usage.generated == 0, "select only scores"


@pytest.mark.model
def test_branches_of_the_tree_share_what_is_written_before_them(runs_on):
    with serving.metered(runs_on) as usage:
        root = tree_of_thought.grow.run("A fox ran.", 3, 1, backend=runs_on).ret_value
    assert len(root.children) == 3
    assert all(thought.text.endswith(".") for thought in root.children)
    assert usage.reused > usage.computed


@pytest.mark.model
def test_every_character_has_a_sheet_and_much_of_it_was_not_asked_for(runs_on):
    with serving.metered(runs_on) as usage:
        sheets = character_sheet.fill.run(["Mira", "Tom", "Zeph"], backend=runs_on).ret_value
    assert len(sheets) == 3, "each was valid, or reading it had failed"
    for one in sheets:
        assert 25 < one.jumped < one.tokens, "keys and quotes of six fields and of the gear"
        assert 10 <= one.sheet.age <= 99
    assert usage.generated == sum(one.tokens for one in sheets)
    assert usage.reused > usage.computed, "the sheets before it are computed once"


@pytest.mark.model
def test_an_example_runs_by_path_with_an_engine_of_its_own(smollm2):
    """As the manual says it, and where Python does not look into the script's folder."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / "few_shot_eval.py", "--limit", "2", "--shots", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "of 2 questions" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr, "colours and bars are for terminals"


@pytest.mark.model
def test_the_demo_measures_both_servers(smollm2, capsys):
    arguments = ["--users", "2", "--turns", "2", "--max-tokens", "4"]
    assert role_play_chat.main(["--demo", *arguments]) == 0
    printed = capsys.readouterr().out
    computed = next(line for line in printed.splitlines() if "tokens computed" in line)
    cached, plain = (
        int(cell.strip().replace(",", "")) for cell in computed.strip("│").split("│")[1:3]
    )
    assert plain > 3 * cached, "four turns with the sheet in each, against one sheet"
    assert "answers are the same" in " ".join(printed.split())


# --- when it goes wrong --------------------------------------------------------------------------


def test_a_server_that_cannot_start_is_told_in_one_line(capfd):
    def start():
        with serving.server(model="/nowhere/at/all"):
            pytest.fail("there is no such model")

    assert serving.outcome(start) == 1
    assert "ended with exit code 1 before it was ready" in capfd.readouterr().err


@pytest.mark.parametrize(
    "example", [role_play_chat, few_shot_eval, agent, tree_of_thought, character_sheet]
)
def test_a_url_without_a_server_is_told_in_one_line(example, capsys):
    assert example.main(["--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "no answer from http://127.0.0.1:9" in error
    assert "Traceback" not in error


def test_the_sheet_and_the_chats_are_what_the_demo_needs():
    chats = json.loads((serving.DATA / "passengers.json").read_text())
    assert len(chats) == 6
    assert all(len(turns) == 3 for turns in chats.values())
    assert 600 < len(role_play_chat.CHARACTER.split()) < 1200
