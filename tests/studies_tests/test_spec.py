"""Every way in which a study file can be wrong gets one sentence that names file and key."""

import pytest

from mmfa.errors import ConfigError
from studies import library, spec
from studies.plan import digest
from studies.resolve import resolve

GOOD = """
question = "Does it matter?"
trials = 4
start_up = 2
[space."loss.lambda_aal"]
low = 0.1
high = 10
log = true
"""


def parse(text):
    return spec.parse(text, name="mine", origin="mine.toml")


def test_a_good_study_reads_as_written():
    study = parse(GOOD)
    assert (study.name, study.trials, study.start_up) == ("mine", 4, 2)
    assert study.space["loss.lambda_aal"] == spec.Range(low=0.1, high=10, log=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 4", "trails = 4", r"'trails' is not a key of a study; did you mean 'trials'\?"),
        ("trials = 4", "trials = 0", r"\[trials\] .*greater than or equal to 1, but got 0"),
        ("trials = 4", 'trials = "4"', r"\[trials\] .*integer, but got '4'"),
        ("trials = 4", "", r"'trials' is missing"),
        ("loss.lambda_aal", "loss.lamda_aal", r"\[space\] 'loss.lamda_aal' .*did you mean 'loss.lambda_aal'\?"),
        ("low = 0.1", "low = 20", r"`low < high` must hold, but got low=20, high=10"),
        ("low = 0.1", "low = 0", r"`log` needs low > 0, but got low=0"),
        ("low = 0.1", 'low = "x"', r"low.*'x'"),
        ("log = true", "lgo = true", r"'space.loss.lambda_aal.lgo' is not a key"),
        ("low = 0.1", "low = -1.0\nlog = false", r"mine.toml"),
        ("[space", '[fixed]\n"loss.lambda_aal" = 1.0\n[space', r"'loss.lambda_aal' is in \[fixed\] and in \[space\]"),
        ("[space", '[fixed]\n"loss.nope" = 1.0\n[space', r"\[fixed\] 'loss.nope' is not a config field"),
        ("loss.lambda_aal", "run.seed", r"\[space\] 'run.seed' cannot be searched; use --seed"),
        (
            "[space",
            '[objective]\nmetric = "target/mAP"\n[space',
            r'official test labels.* write selection = "oracle"',
        ),
        ("question", "name = 'x'\nquestion", r"'name' is not a key of a study; a study is named by its file"),
        ("question =", "question", r"a study must be TOML"),
        ('[space."loss.lambda_aal"]', "[space.loss.lambda_aal]", r'quoted: write "loss.lambda_aal"'),
        ("[space", "[fixed]\noptim.num_epochs = 3\n[space", r'quoted: write "optim.num_epochs"'),
    ],
)
def test_a_wrong_study_is_named(old, new, message):
    with pytest.raises(ConfigError, match=message) as raised:
        parse(GOOD.replace(old, new, 1))
    assert "mine.toml" in str(raised.value)


def test_choices_may_be_labels_of_values():
    text = GOOD + '[space."kernel.bandwidths"]\nchoices = {paper = [1, 5, 10], narrow = [0.5, 1]}\n'
    plan = resolve(parse(text), profile_name="embedded", overrides={})
    assert plan.baseline_params()["kernel.bandwidths"] == "paper"
    assert plan.decode({"kernel.bandwidths": "narrow"}).kernel.bandwidths == (0.5, 1.0)


def test_choices_that_the_method_refuses_are_refused():
    text = GOOD + '[space."model.pooling"]\nchoices = ["max", "min"]\n'
    with pytest.raises(ConfigError, match="model.pooling must be one of 'max', 'average', 'gem', but got 'min'"):
        parse(text)


def test_choices_that_the_baseline_refuses_are_refused_before_the_first_trial():
    study = parse(GOOD + '[space."model.attribute_features"]\nchoices = ["logit", "hidden"]\n')
    with pytest.raises(ConfigError, match=r"mine.toml: \[space\] 'model.attribute_features', 'hidden': .*hidden layer"):
        resolve(study, profile_name="embedded", overrides={})
    assert resolve(study, profile_name="embedded", overrides={"model.attr_head_width": 8})


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.toml: a study must be TOML in UTF-8 text"):
        spec.read(binary)
    with pytest.raises(ConfigError, match=r"gone.toml: the study cannot be read: No such file"):
        library.load(str(tmp_path / "gone.toml"))


def test_a_file_whose_stem_is_no_name(tmp_path):
    for stem in ("what's", "a b", "x" * 65):
        path = tmp_path / f"{stem}.toml"
        path.write_text(GOOD)
        with pytest.raises(ConfigError, match="a study is named by its file"):
            library.load(str(path))


def test_library_lists_and_names_the_nearest():
    assert {"lambdas", "smoke"} <= set(library.names())
    assert [library.load(name).name for name in library.names()] == library.names()
    with pytest.raises(ConfigError, match=r"'lamdas' is not a shipped study; did you mean 'lambdas'\?"):
        library.load("lamdas")


def test_a_study_by_path_is_the_study(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert library.load(str(path)).space == parse(GOOD).space


@pytest.mark.parametrize("name", library.names())
def test_shipped_studies_resolve_and_open_with_their_lab_notes(name):
    study = library.load(name)
    plan = resolve(study, profile_name="embedded", overrides={})
    assert plan.baseline_params().keys() == set(plan.active(plan.baseline_params()))
    assert resolve(study, profile_name="paper", overrides={}).num_trainings >= plan.num_trainings
    assert study.measured is not None, "a shipped study states what it cost when it was measured"


def test_resolve_keeps_the_papers_lambdas_as_baseline():
    plan = resolve(library.load("lambdas"), profile_name="embedded", overrides={})
    assert plan.baseline_params() == {"loss.lambda_attr": 0.1, "loss.lambda_aal": 1.0, "loss.lambda_mdal": 1.0}
    assert not [name for name in plan.differences() if name.startswith(("loss.", "kernel."))]


@pytest.mark.parametrize("mode", ["separate", "joint", "domain", "frozen"])
def test_controls_do_not_align(mode):
    plan = resolve(library.load("lambdas"), profile_name="embedded", overrides={"model.bn_mode": mode})
    controls = {run.role: run.config for run in plan.controls}
    for name, sees_target in (("source_only", False), ("target_bn", True)):
        control = controls[name]
        assert (control.loss.lambda_aal, control.loss.lambda_mdal) == (0, 0)
        assert control.data.use_target is sees_target
        assert control.loss.lambda_attr == plan.baseline.loss.lambda_attr


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"overrides": {"loss.lambda_aal": 2.0}}, r"--set loss.lambda_aal would fix what mine.toml searches"),
        ({"overrides": {"optim.num_epoch": 2}}, r"--set: 'optim.num_epoch' .*did you mean 'optim.num_epochs'"),
        ({"overrides": {"optim.num_epochs": 0}}, r"--set: optim.num_epochs >= 1 must hold, but got 0"),
        ({"overrides": {"run.seed": 1}}, r"run.seed is not set here; use --seed"),
        ({"overrides": {"data.num_val_ids": 0}}, r"data.num_val_ids=0 leaves no target_val"),
        ({"overrides": {}, "trials": 0}, r"--trials must be 1 or more, but got 0"),
        ({"overrides": {}, "seed": -1}, r"run.seed >= 0 must hold, but got -1"),
    ],
)
def test_resolve_refuses(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        resolve(parse(GOOD), profile_name="embedded", **kwargs)


def test_resolve_refuses_a_space_without_the_baseline():
    with pytest.raises(ConfigError, match=r"'loss.lambda_aal' must contain the baseline, 1.0; widen it"):
        resolve(parse(GOOD.replace("high = 10", "high = 0.5")), profile_name="embedded", overrides={})


def test_a_dimension_that_the_baseline_does_not_have_needs_a_condition():
    centre = '[space."kernel.centre"]\nlow = 0.25\nhigh = 4.0\nlog = true\n'
    with pytest.raises(ConfigError, match=r"'kernel.centre' must contain the baseline, None; search it under a cond"):
        resolve(parse(GOOD + centre), profile_name="embedded", overrides={})
    scale = '[space."kernel.scale"]\nchoices = ["dim", "median"]\n'
    plan = resolve(
        parse(GOOD + scale + centre + 'when = {"kernel.scale" = "median"}\n'), profile_name="embedded", overrides={}
    )
    assert plan.baseline_params() == {"loss.lambda_aal": 1.0, "kernel.scale": "dim"}
    point = {"loss.lambda_aal": 1.0, "kernel.scale": "median", "kernel.centre": 0.5}
    assert plan.decode(point).kernel.alphas == (0.5,)


def test_identity_is_content_and_not_the_number_of_trials():
    def identity(text=GOOD, fingerprint="a", **kwargs):
        plan = resolve(parse(text), profile_name="embedded", overrides=kwargs.pop("overrides", {}), **kwargs)
        return digest(plan.identity(fingerprints={"embedded-source": fingerprint}))

    same = identity()
    assert same == identity(trials=9) == identity(GOOD.replace("Does it matter?", "Well?"))
    different = [
        identity(seed=1),
        identity(fingerprint="b"),
        identity(overrides={"optim.num_epochs": 3}),
        identity(GOOD.replace("high = 10", "high = 9")),
        identity(target="embedded-null"),
    ]
    assert len({same, *different}) == 6
