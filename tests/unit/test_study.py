"""What a study consists of: models and their places, and what each job depends on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iskd.config import load_study
from iskd.config.best import BEST
from iskd.plan import ModelId, StudyPlan
from tests.unit.test_config import LEAVE_OUT, TINY, TOY, changed

NAME = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,12}", fullmatch=True)


def plan(**changes: Any) -> StudyPlan:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return StudyPlan(load_study(changed(dotted), "my.yaml"))


def of(changes: dict[str, Any]) -> StudyPlan:
    return StudyPlan(load_study(changed(changes), "my.yaml"))


@given(
    teacher=NAME,
    arm=NAME.filter(lambda name: name != "teacher"),
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(1, 300),
)
def test_a_model_is_read_back_from_its_path(teacher: str, arm: str, seed: int, step: int) -> None:
    model = ModelId(teacher, arm, seed, step)
    assert ModelId.parse(model.path) == model
    assert model.path.count("/") == 3
    whole = ModelId(teacher, "teacher", None, 0)
    assert ModelId.parse(whole.path) == whole


@given(
    seeds=st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True),
    order=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True) | st.just("random"),
    l1=st.none() | st.just([1]),
)
def test_models_and_places_are_distinct_and_closed(
    seeds: list[int], order: Any, l1: list[int] | None
) -> None:
    study = of({"seeds": seeds, f"{TOY}.order": order, "arms.l1.steps": l1})
    models = study.models.evaluated()
    assert len(set(models)) == len(models)
    assert len({study.models.place(m) for m in models}) == len(models)
    assert [ModelId.parse(m.path) for m in models] == models
    assert models[0] == study.models.teacher_model("toy")
    steps = 3 if order == "random" else len(order)
    assert len(models) == 1 + len(seeds) * (steps + 3)
    for model in models[1:]:
        if study.models.producer(model) == "substitute_block":
            assert study.models.previous(model) in models
        else:
            assert study.models.reference(model) in models


def test_each_arm_has_its_rule() -> None:
    study = plan()
    makers = {m.arm: study.models.producer(m) for m in study.models.evaluated()}
    assert makers == {
        "teacher": "pretrain_teacher",
        "iskd": "substitute_block",
        "l1": "prune_l1",
        "kd": "distill_student",
        "teacher_tuned": "tune_teacher",
    }
    assert study.models.place(ModelId("toy", "teacher", None, 0)) == "pretrain_teacher/toy"
    assert study.models.place(ModelId("toy", "l1", 3, 2)) == "prune_l1/toy/l1/seed_3/step_02"


def test_a_chain_starts_at_the_teacher() -> None:
    study = plan()
    second = ModelId("toy", "iskd", 3, 2)
    first = study.models.previous(second)
    assert first == ModelId("toy", "iskd", 3, 1)
    assert study.models.previous(first) == study.models.teacher_model("toy")
    assert [study.trainings.substitution(m)["block"] for m in (first, second)] == [1, 2]


def test_baselines_stand_at_the_headline_unless_configured_otherwise() -> None:
    study = of({f"{TOY}.headline": 1, "arms.kd.steps": [1, 2]})
    steps = {
        arm: [m.step for m in study.models.evaluated() if m.arm == arm]
        for arm in ("l1", "kd", "iskd")
    }
    assert steps == {"l1": [1], "kd": [1, 2], "iskd": [1, 2]}
    assert study.models.headline_steps() == {"toy": 1}


def test_a_baseline_sees_its_references_tokens_with_its_own_settings() -> None:
    study = of(
        {
            f"{TOY}.training": {"epochs": 3, "sequences": 40, "batch_size": 16},
            "arms.iskd.training": {"epochs": 2},
            "arms.other": {"method": "iskd", "training": {"sequences": 7}},
            "arms.l1": {"method": "l1", "reference": "iskd", "training": {"batch_size": 4}},
            "arms.kd": {"method": "kd", "reference": "other"},
            "arms.teacher_tuned.reference": "iskd",
        }
    )
    pruned = study.trainings.baseline(ModelId("toy", "l1", 3, 2))
    trained = pruned["training"]
    assert (trained["epochs"], trained["sequences"], trained["batch_size"]) == (2, 40, 4)
    assert pruned["reference_blocks"] == [1, 2]
    taught = study.trainings.baseline(ModelId("toy", "kd", 3, 1))["training"]
    assert (taught["epochs"], taught["sequences"], taught["batch_size"]) == (3, 7, 16)
    # An iskd arm has no reference.
    with pytest.raises(KeyError):
        study.models.reference(ModelId("toy", "iskd", 3, 1))


def parameters(study: StudyPlan) -> dict[str, Any]:
    """Give the parameters of every job that makes a model."""
    found: dict[str, Any] = {}
    for model in study.models.evaluated():
        maker = study.models.producer(model)
        if maker == "pretrain_teacher":
            found[model.path] = study.trainings.pretraining(model.teacher)
        elif maker == "substitute_block":
            found[model.path] = study.trainings.substitution(model)
        else:
            found[model.path] = study.trainings.baseline(model)
    return found


def moved(changes: dict[str, Any]) -> set[str]:
    """Name the arms some of whose jobs have other parameters after a change."""
    before, after = parameters(plan()), parameters(of(changes))
    assert before.keys() == after.keys()
    return {ModelId.parse(path).arm for path in before if before[path] != after[path]}


@pytest.mark.parametrize(
    ("changes", "arms"),
    [
        ({"arms.l1.training": {"batch_size": 2}}, {"l1"}),
        ({"arms.kd.training": {"schedule": "cosine"}}, {"kd"}),
        ({"arms.kd.objective": {"kl": 1.0, "temperature": 2}}, {"kd"}),
        ({"arms.kd.start": "alternate"}, {"kd"}),
        ({"arms.iskd.objective": {"kl": 1.0}}, {"iskd"}),
        ({"arms.iskd.warm_start": 0.1}, {"iskd"}),
        # Without a divergence its temperature is nobody's concern, and without a fitted start the
        # number of sequences it would look at.
        ({"arms.iskd.objective": {"temperature": 2.0, "teacher_precision": "bfloat16"}}, set()),
        ({"arms.kd.objective": {"next_token": 0.5, "kl": 0.5, "draws": 9}}, set()),
        (
            {"arms.kd.objective": {"next_token": 0.5, "kl": 0.5, "teacher_cache": "sampled"}},
            {"kd"},
        ),
        ({f"{TOY}.compact.calibration": 3}, set()),
        ({f"{TOY}.compact.initialisation": "zero_up"}, {"iskd"}),
        ({"arms.iskd.order": [1, 0]}, {"iskd", "l1", "kd"}),
        ({"arms.iskd.as_published": True}, {"iskd", "l1", "kd"}),
        ({"arms.iskd.training": {"batch_size": 2}}, {"iskd"}),
        # Epochs and sequences are matched, so a baseline follows its reference.
        ({"arms.iskd.training": {"epochs": 2}}, {"iskd", "l1", "kd", "teacher_tuned"}),
        ({f"{TOY}.training.clip": None}, {"iskd", "l1", "kd", "teacher_tuned"}),
        ({f"{TOY}.student.blocks": 2}, {"kd"}),
        # They decide how large the reference is, and these match that size.
        ({f"{TOY}.compact.mlp": 64}, {"iskd", "l1", "kd"}),
        ({f"{TOY}.order": [2, 1]}, {"iskd", "l1", "kd"}),
        ({f"{TOY}.order": [0, 2]}, {"iskd", "l1", "kd"}),
        ({f"{TOY}.pretraining.epochs": 2}, {"teacher"}),
        ({f"{TOY}.architecture.dropout": 0.1}, {"teacher"}),
        ({"evaluation": {"batch_size": 3}}, set()),
        ({"tasks.hellaswag.rows": 4}, set()),
    ],
)
def test_a_change_reaches_only_the_jobs_it_concerns(
    changes: dict[str, Any], arms: set[str]
) -> None:
    assert moved(changes) == arms


def test_another_arm_or_seed_changes_no_job_that_was_there() -> None:
    before = parameters(plan())
    wider = parameters(of({"seeds": [3, 4], "arms.second_l1": {"method": "l1"}}))
    assert {path: wider[path] for path in before} == before


SAMPLED = {"next_token": 0.5, "kl": 0.5, "temperature": 2.0, "teacher_cache": "sampled"}
EXACT = {**SAMPLED, "teacher_cache": "exact"}


def answers(study: StudyPlan, path: str) -> list[str]:
    """Name the recorded answers that a model's training reads."""
    return [one.place for one in study.recordings.read_by(ModelId.parse(path))]


def test_only_who_asks_for_recorded_answers_reads_them_and_all_who_do_share_them() -> None:
    study = of(
        {
            f"{TOY}.training.sequences": 40,
            "arms.iskd.objective": SAMPLED,
            "arms.again": {"method": "iskd", "objective": SAMPLED, "training": {"epochs": 4}},
            "arms.exact": {"method": "iskd", "objective": EXACT},
            "arms.l1": {"method": "l1", "reference": "iskd", "objective": SAMPLED},
            "arms.kd": {"method": "kd", "reference": "iskd"},
            "arms.teacher_tuned.reference": "iskd",
        }
    )
    top = "record_teacher/toy/sampled_12_t2_float32_40/seed_3"
    both = [f"{top}/step_01", f"{top}/step_02"]
    assert answers(study, "toy/iskd/seed_3/step_01") == both[:1]
    assert answers(study, "toy/iskd/seed_3/step_02") == both
    assert answers(study, "toy/again/seed_3/step_02") == both
    assert answers(study, "toy/l1/seed_3/step_02") == both
    assert answers(study, "toy/exact/seed_3/step_01") == [
        "record_teacher/toy/exact_float32_40/seed_3/step_01"
    ]
    assert answers(study, "toy/kd/seed_3/step_02") == []
    assert answers(study, "toy/teacher_tuned/seed_3/step_02") == []
    assert [one.place for one in study.recordings.before(both[1])] == both[:1]
    assert study.recordings.parameters(both[1]) == {
        "kind": "sampled",
        "teacher_precision": "float32",
        "temperature": 2.0,
        "draws": 12,
        "sequences": 40,
        "validation": 0,
    }


def test_where_steps_take_the_whole_corpus_one_recording_serves_every_arm() -> None:
    study = of(
        {
            "arms.iskd.objective": EXACT,
            "arms.measured": {
                "method": "iskd",
                "objective": {**EXACT, "temperature": 1.0, "draws": 3},
                "order": "measured",
                "validation": 4,
            },
            "arms.l1": {"method": "l1", "reference": "measured", "objective": EXACT},
            "arms.kd": {"method": "kd", "reference": "iskd"},
            "arms.teacher_tuned.reference": "iskd",
        }
    )
    only = ["record_teacher/toy/exact_float32_all/seed_3/step_01"]
    for path in ("iskd/seed_3/step_01", "iskd/seed_3/step_02", "measured/seed_3/step_02"):
        assert answers(study, f"toy/{path}") == only
    assert answers(study, "toy/l1/seed_3/step_02") == only


def test_what_is_set_aside_of_the_corpus_is_of_a_recordings_name() -> None:
    study = of(
        {
            f"{TOY}.training.sequences": 40,
            "arms.iskd": {
                "method": "iskd",
                "objective": SAMPLED,
                "order": "measured",
                "validation": 4,
            },
        }
    )
    assert answers(study, "toy/iskd/seed_3/step_01") == [
        "record_teacher/toy/sampled_12_t2_float32_40_without_4/seed_3/step_01"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {f"{TOY}.training": {"batch_size": 4, "sequences": 40, "epochs": 3, "clip": None}},
        {"seeds": [3, 4]},
        {f"{TOY}.order": [1, 2, 0], f"{TOY}.headline": 2},
        {"arms.other": {"method": "iskd", "objective": {**SAMPLED, "kl": 0.9}}},
        {"arms.iskd.objective": {**SAMPLED, "next_token": 0.1, "kl": 3.0}},
        {"arms.iskd.warm_start": 0.3},
    ],
    ids=str,
)
def test_what_a_recording_does_not_depend_on_changes_none(changes: dict[str, Any]) -> None:
    usual = {
        f"{TOY}.training.sequences": 40,
        "arms.iskd.objective": SAMPLED,
        "arms.l1.reference": "iskd",
        "arms.kd.reference": "iskd",
        "arms.teacher_tuned.reference": "iskd",
    }

    def recordings(changed: dict[str, Any]) -> dict[str, Any]:
        made = of(changed).recordings
        return {place: made.parameters(place) for place in made._by_place}

    before, after = recordings(usual), recordings({**usual, **changes})
    assert before
    assert before.items() <= after.items()


@pytest.mark.parametrize("order", [[2, 0], "random", "measured"])
def test_another_name_of_an_arm_changes_no_job_of_the_arms_that_refer_to_it(order: Any) -> None:
    arms = {name: arm for name, arm in TINY["arms"].items() if name != "iskd"}
    chain = TINY["arms"]["iskd"] | {"order": order}

    def study(name: str) -> dict[str, Any]:
        referring = {arm: settings | {"reference": name} for arm, settings in arms.items()}
        return parameters(of({"arms": {name: chain, **referring}}))

    before, after = study("iskd"), study("renamed")
    others = [path for path in before if ModelId.parse(path).arm != "iskd"]
    assert len(others) == 1 + len(arms)
    assert {path: after[path] for path in others} == {path: before[path] for path in others}


@given(seed=st.integers(0, 2**31 - 1), steps=st.integers(1, 3))
def test_a_random_order_is_drawn_from_the_seed(seed: int, steps: int) -> None:
    study = of({f"{TOY}.order": "random", f"{TOY}.steps": steps, "seeds": [seed]})
    order = study.trainings.order(ModelId("toy", "iskd", seed, 1))
    assert order is not None
    assert order == study.trainings.order(ModelId("toy", "iskd", seed, 2))
    assert len(set(order)) == len(order) == steps
    assert set(order) <= {0, 1, 2}
    whole = of({f"{TOY}.order": "random", "seeds": [seed]}).trainings.order(
        ModelId("toy", "iskd", seed, 1)
    )
    assert whole is not None
    assert sorted(whole) == [0, 1, 2]


def test_seeds_and_teachers_draw_different_orders() -> None:
    big = {**TINY["teachers"]["toy"], "order": "random"}
    big["architecture"] = {**big["architecture"], "blocks": 12}
    study = of({"teachers.toy": big, "teachers.two": big})
    drawn = {
        tuple(study.trainings.order(ModelId(t, "iskd", seed, 1)) or ())
        for t in ("toy", "two")
        for seed in range(5)
    }
    assert len(drawn) == 10


def test_an_explicit_order_is_cut_to_the_steps() -> None:
    study = of({f"{TOY}.order": [2, 0, 1], f"{TOY}.steps": 2})
    assert [study.trainings.order(ModelId("toy", "iskd", seed, 1)) for seed in (1, 2)] == [
        [2, 0]
    ] * 2
    assert study.trainings.plan(ModelId("toy", "iskd", 3, 0))["order"] == [2, 0]


def test_an_arm_may_have_an_order_of_its_own() -> None:
    study = of(
        {
            "arms.mine": {"method": "iskd", "order": [2, 0]},
            "arms.found": {"method": "iskd", "order": "measured", "validation": 5},
            **{f"arms.{arm}.reference": "found" for arm in ("l1", "kd", "teacher_tuned")},
        }
    )
    mine, found = (study.trainings.substitution(ModelId("toy", a, 3, 1)) for a in ("mine", "found"))
    assert (mine["block"], found["block"], found["validation"]) == (2, None, 5)
    assert mine["validation"] == 0
    assert study.trainings.plan(ModelId("toy", "found", 3, 0))["order"] is None
    # The size does not depend on which blocks go.
    assert study.trainings.baseline(ModelId("toy", "l1", 3, 2))["reference_blocks"] == [None, None]


def test_a_block_without_sizes_is_as_large_as_the_teachers_section_says() -> None:
    study = of(
        {
            "arms.narrow": {"method": "iskd", "compact": {"recipe": "narrow"}},
            "arms.half": {"method": "iskd", "compact": {"recipe": "paper", "reduction": 0.5}},
            **{f"arms.{arm}.reference": "iskd" for arm in ("l1", "kd", "teacher_tuned")},
        }
    )
    usual = study.trainings.sizes("toy", "iskd")
    assert (usual.width, usual.like) == (8, None)
    assert study.trainings.sizes("toy", "narrow").like == usual
    assert study.trainings.sizes("toy", "half").like is None
    narrow, half = (
        study.trainings.substitution(ModelId("toy", a, 3, 1)) for a in ("narrow", "half")
    )
    assert [each["start"]["initialisation"] for each in (narrow, half)] == ["teacher", "paper"]
    # Only a share of the whole model depends on how many blocks go.
    assert [each["sizes"]["replaced"] for each in (narrow, half)] == [1, 2]


def test_replacing_at_once_matches_tokens_and_blocks() -> None:
    study = of(
        {
            f"{TOY}.training.sequences": 9,
            "arms.once": {"method": "one_shot"},
            "arms.drawn": {"method": "theseus", "first": 0.3, "curriculum": 0.5, "steps": [1]},
        }
    )
    once = study.trainings.at_once(ModelId("toy", "once", 3, 2))
    drawn = study.trainings.at_once(ModelId("toy", "drawn", 3, 1))
    assert (once["blocks"], once["training"]["sequences"]) == ([1, 2], 9)
    assert (drawn["blocks"], drawn["first"], drawn["curriculum"]) == ([1], 0.3, 0.5)
    assert once["curriculum"] is None
    assert study.models.producer(ModelId("toy", "once", 3, 2)) == "substitute_at_once"


def test_only_the_headline_may_be_evaluated() -> None:
    study = of({"evaluation": {"steps": "headline"}, f"{TOY}.order": [2, 0, 1]})
    assert [m.step for m in study.models.evaluated() if m.arm == "iskd"] == [3]
    assert [m.step for m in study.models.trained() if m.arm == "iskd"] == [1, 2, 3]


def test_an_arm_may_be_run_with_fewer_seeds_than_the_study() -> None:
    study = of({"seeds": [3, 4, 5], "arms.iskd.seeds": [5, 3]})
    for models in (study.models.trained(), study.models.evaluated()):
        seeds = {
            arm: sorted({model.seed for model in models if model.arm == arm and model.seed})
            for arm in study.study.arms
        }
        assert seeds.pop("iskd") == [3, 5]
        assert all(own == [3, 4, 5] for own in seeds.values())
    # What fewer seeds do not ask for leaves the parameters of what is there alone.
    whole = of({"seeds": [3, 4, 5]})
    for model in study.models.trained():
        if model.arm != "iskd":
            assert study.trainings.baseline(model) == whole.trainings.baseline(model)


def test_a_reference_row_stands_beside_its_teacher() -> None:
    hub = {key: TINY["teachers"]["toy"][key] for key in ("family", "order")}
    hub |= {"source": "hub", "model": "a/b", "blocks": 3}
    study = of(
        {"teachers.big": hub, "arms.small": {"method": "hub", "teacher": "big", "model": "c/d"}}
    )
    rows = [model for model in study.models.evaluated() if model.arm == "small"]
    assert rows == [ModelId("big", "small", None, 0)]
    assert ModelId.parse(rows[0].path) == rows[0]
    assert study.models.place(rows[0]) == "download_reference/small"
    assert rows[0] not in study.models.trained()
    assert study.jobs.hub_arms() == ["small"]


def test_the_collection_names_every_file_once() -> None:
    study = of({"seeds": [1, 2]})
    spec = study.jobs.metrics()
    models = study.models.evaluated()
    assert len(spec["heldout"]) == len(models)
    assert len(spec["evaluations"]) == len(models) * len(study.study.tasks)
    keys = {tuple(sorted(entry.items(), key=str)) for entry in spec["evaluations"]}
    assert len(keys) == len(spec["evaluations"])
    first = {"teacher": "toy", "arm": "teacher", "seed": None, "step": 0}
    assert spec["heldout"][0] == {**first, "text": "heldout"}


def test_tasks_may_have_other_names_than_their_kind() -> None:
    study = of({"tasks.easy": {"source": "toyworld", "kind": "hellaswag", "rows": 2}})
    assert study.jobs.kind("easy") == "hellaswag"
    assert study.jobs.rows("easy")["rows"] == 2
    assert study.jobs.evaluation("easy")["task"]["kind"] == "hellaswag"
    assert study.jobs.reporting()["headline"]["easy"] == "acc_norm"


def test_fetched_and_trained_teachers_are_distinguished() -> None:
    hub = {key: TINY["teachers"]["toy"][key] for key in ("family", "compact", "order", "student")}
    hub |= {"source": "hub", "model": "a/b", "blocks": 3}
    study = of({"teachers.big": hub, f"{TOY}.headline": 1})
    assert study.jobs.hub_teachers() == ["big"]
    assert study.jobs.hub_tasks() == []
    assert study.models.producer(study.models.teacher_model("big")) == "download_model"
    assert study.models.headline_steps() == {"toy": 1, "big": 2}
    with pytest.raises(KeyError):
        study.trainings.pretraining("big")
    with pytest.raises(KeyError):
        study.jobs.tokenizer("big")


def test_a_study_without_baselines_has_only_its_chain() -> None:
    study = of({"arms.l1": LEAVE_OUT, "arms.kd": LEAVE_OUT, "arms.teacher_tuned": LEAVE_OUT})
    assert [m.step for m in study.models.evaluated()] == [0, 1, 2]


def test_recipe_best_fills_in_what_is_left_out() -> None:
    study = of(
        {
            "arms.all": {"method": "iskd", "recipe": "best"},
            "arms.some": {
                "method": "iskd",
                "recipe": "best",
                "order": [2, 0],
                "objective": {"kl": 1},
            },
            "arms.at_once": {"method": "one_shot", "recipe": "best", "reference": "all"},
            **{f"arms.{arm}.reference": "iskd" for arm in ("l1", "kd", "teacher_tuned")},
        }
    )
    everything, some = (
        study.trainings.substitution(ModelId("toy", a, 3, 1)) for a in ("all", "some")
    )
    assert everything["start"]["initialisation"] == "refit"
    assert some["start"]["initialisation"] == "least_squares"
    assert (everything["block"], some["block"]) == (None, 2)
    assert everything["objective"]["kl"] == BEST["objective"]["kl"]
    rates = everything["training"]["learning_rate"]
    assert rates["rest"] == rates["compact"]
    assert (some["objective"]["next_token"], some["objective"]["temperature"]) == (1.0, 1.0)
    assert study.trainings.sizes("toy", "all").recipe == "parts"
    assert study.trainings.sizes("toy", "some").recipe == "narrow"
    # All at once, nothing can be measured between the steps.
    assert study.trainings.order(ModelId("toy", "at_once", 3, 2)) == [1, 2]


@pytest.mark.parametrize(
    "own", [{"compact": {"recipe": "bottleneck"}}, {"order": "measured"}], ids=["block", "order"]
)
def test_recipe_best_replaces_blocks_one_by_one_where_an_arm_says_so(own: dict[str, Any]) -> None:
    arm = {"method": "iskd", "recipe": "best", **own}
    matched = {f"arms.{name}.reference": "iskd" for name in ("l1", "kd", "teacher_tuned")}
    study = of({"arms.mine": arm, **matched})
    step = study.trainings.substitution(ModelId("toy", "mine", 3, 1))
    assert step["block"] is None  # measured before each step
    assert study.trainings.sizes("toy", "mine").recipe == own.get("compact", {}).get(
        "recipe", "narrow"
    )
    # A fresh block learns faster than what is kept, as the teacher's section says.
    rates = step["training"]["learning_rate"]
    assert rates["rest"] < rates["compact"]


def test_an_arm_may_train_all_weights_at_the_compact_rate() -> None:
    changes = {"arms.iskd.training": {"learning_rate": {"compact": 0.5, "rest": "compact"}}}
    rates = of(changes).trainings.training("toy", "iskd").learning_rate
    assert (rates.compact, rates.rest) == (0.5, 0.5)


def test_a_student_keeps_the_defaults_of_what_its_objective_leaves_out() -> None:
    objective = of({"arms.kd.objective": {"temperature": 2.0}}).trainings.baseline(
        ModelId("toy", "kd", 3, 2)
    )["objective"]
    assert (objective["next_token"], objective["kl"]) == (0.5, 0.5)
    assert objective["temperature"] == 2.0


def test_a_baseline_leaves_out_what_its_reference_leaves_out() -> None:
    measured = of({"arms.iskd.order": "measured", "arms.iskd.validation": 7})
    for arm in ("l1", "kd", "teacher_tuned"):
        assert measured.trainings.baseline(ModelId("toy", arm, 3, 2))["validation"] == 7
    assert of({}).trainings.baseline(ModelId("toy", "l1", 3, 2))["validation"] == 0


def test_a_fused_update_is_a_parameter_of_those_trainings_alone_that_ask_for_it() -> None:
    model = ModelId("toy", "teacher_tuned", 3, 2)
    asked = of({"arms.teacher_tuned.training": {"fused": True}}).trainings
    assert asked.baseline(model)["training"]["fused"]
    other = ModelId("toy", "l1", 3, 2)
    assert asked.baseline(other) == of({}).trainings.baseline(other)
    assert "fused" not in asked.baseline(other)["training"]
    assert of({f"{TOY}.training.fused": True}).trainings.baseline(other)["training"]["fused"]


def test_how_many_gpus_a_training_takes_is_no_parameter_of_it() -> None:
    """Finished models are not made anew because the next ones take more GPUs."""
    one, two = of({}), of({f"{TOY}.gpus": 2, f"{TOY}.parallel": "fsdp"})
    assert one.trainings.pretraining("toy") == two.trainings.pretraining("toy")
    for model in one.models.trained():
        if one.models.producer(model) == "substitute_block":
            assert one.trainings.plan(model) == two.trainings.plan(model)
            assert one.trainings.substitution(model) == two.trainings.substitution(model)
        else:
            assert one.trainings.baseline(model) == two.trainings.baseline(model)
