"""What the registered model says of itself: a card for each version, and a description of the model as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.entities import Run

from mmfa.config import TrialConfig, profile
from tune.wording import percent, points, short, symbol

FILE = "MODEL_CARD.md"
"""Beside the model's own files."""
LONGEST = 5000
"""Characters that MLflow's database has for a description."""
CHOSE = {
    "target_val": "chosen by labels of held-out identities of the target",
    "none": "chosen without any label of the target",
    "oracle": "CHOSEN BY THE OFFICIAL TEST LABELS: no number here holds for new data",
}
SHOWN = (
    *("loss.lambda_attr", "loss.lambda_aal", "loss.lambda_mdal", "kernel.bandwidths", "kernel.scale"),
    *("model.backbone", "model.pooling", "model.bn_mode", "optim.num_epochs", "run.seed"),
)
"""Fields of the setting that a card names; `config.json` of the run has all."""
OFFICIAL = ("mAP", "rank1", "rank5", "rank10")
# MLflow shows every end of a line as one.
CITATION = (
    "Shan Lin, Haoliang Li, Chang-Tsun Li, Alex Chichung Kot: *Multi-task Mid-level Feature Alignment Network for "
    "Unsupervised Cross-Dataset Person Re-Identification*. British Machine Vision Conference (BMVC), 2018."
)
ETHICS = (
    "Person re-identification is surveillance technology: it follows people from camera to camera, mostly without "
    "their knowing. Use it on data that you may use, for a purpose that those who are on it could know of. It must not "
    "be the only ground of a decision about a person. Error rates by group of people were not measured."
)
WITHDRAWN = (
    "**DukeMTMC-reID has been withdrawn by its authors** (2019), because the people in it had not agreed. Use this "
    "model only to check published numbers, under terms that let you."
)


def about(name: str, source: str, target: str) -> str:
    """Return the description of a registered model, as Markdown, without its history."""
    return "\n".join(
        [
            f"Embeds images of pedestrians, so that the same person lies near in another camera of **{target}**. Its "
            f"weights are trained by MMFA with labels of **{source}**, and with images of {target} alone.",
            "",
            "- `candidate`: the best that a study found, by its objective (one seed: partly luck).",
            "- `champion`: granted by a `BEATS` verdict on fresh seeds alone, against the champion before or the "
            "paper's defaults.",
            "",
            f'`mlflow.pyfunc.load_model("models:/{name}@champion").predict(images)` returns embeddings; compare them '
            f"by Euclidean distance. Each version has a card: its description, and `{FILE}` among its files.",
        ]
    )


def text(run: Run, tags: Mapping[str, str]) -> str:
    """Return a version's card, as Markdown without a title; how good it is comes first, for lists show the beginning.

    Args:
        run: The training's run in MLflow: its metrics, and tags of provenance.
        tags: Of the version; see ``promotion.Promoted``.
    """
    config = TrialConfig.from_json(tags["config"])
    data = config.data
    named = (data.source, data.target)
    parts = [
        _result(run, tags),
        "## Use\n" + _purpose(config, embedded=all(one.startswith("embedded-") for one in named)),
        "## Data and protocol\n" + _protocol(config, tags, labelled="target/mAP" in run.data.metrics),
        "## Setting\n" + _setting(config, run),
        "## Ethics\n" + ETHICS + (f"\n\n{WITHDRAWN}" if "dukemtmc-reid" in named else ""),
        "## Paper\n" + CITATION,
        "## Where it comes from\n" + _origin(run, tags),
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(config: TrialConfig, *, embedded: bool) -> str:
    data = config.data
    size = f"{data.image_height} × {data.image_width}"
    limits = (
        "**It knows rendered figures only**: it shows that everything works, and finds no real people."
        if embedded
        else f"On cameras other than those of {data.target} it is untested, and was not made for them."
    )
    return (
        f"**Intended use:** embeddings of cropped pedestrian images (RGB, any size, resized to {size}), by which a "
        f"gallery is ranked for a query across the cameras of {data.target}; research on unsupervised adaptation.\n\n"
        f"**Limits:** it ranks, it does not identify: somebody always comes first, also when the person is not in the "
        f"gallery. Embeddings are not of unit length. {limits}"
    )


def _result(run: Run, tags: Mapping[str, str]) -> str:
    metrics = run.data.metrics
    found = {key: metrics.get(f"target/{key}") for key in OFFICIAL}
    lines = []
    if "verdict" in tags:
        lines.append(_verdict(tags))
    else:
        lines.append(
            "No verdict. This training scored highest in its search, by one seed: the highest of many is high by "
            "luck too."
        )
    if found["mAP"] is not None:
        shown = ", ".join(f"{key} {percent(value)} %" for key, value in found.items() if value is not None)
        lines.append(f"This training itself (n = 1), official split of the target, last epoch: {shown}.")
    if "objective" in tags and "objective.value" in tags:
        value = float(tags["objective.value"])
        unit = f"{value:.2f}" if tags["objective"] == "label_free/score" else f"{percent(value)} %"
        lines.append(f"In its search: {unit} `{tags['objective']}` (n = 1).")
    return "\n\n".join(lines)


def _verdict(tags: Mapping[str, str]) -> str:
    n = tags.get("verdict.n", "?")
    line = (
        f"{tags['verdict']} the {tags.get('verdict.against', 'baseline')} by "
        f"{points(float(tags.get('verdict.delta', 'nan')))} points of target mAP over n = {n} fresh seeds"
    )
    if "verdict.p_adjusted" in tags:
        line += f", adjusted p = {float(tags['verdict.p_adjusted']):.2g}"
    if "verdict.mean" in tags:
        line += f"; its mean is {percent(float(tags['verdict.mean']))} %"
    if int(tags.get("verdict.of", "1")) > 1:
        line += f", the largest gain of {tags['verdict.of']} settings that were judged"
    if "verdict.alignment" in tags:
        line += (
            f". Alignment's share of it is {points(float(tags['verdict.alignment']))} points, the rest the setting's"
        )
    return f"{line}. These weights are those of the first fresh seed, not of the best one."


def _protocol(config: TrialConfig, tags: Mapping[str, str], *, labelled: bool) -> str:
    data = config.data
    held = f"{data.num_val_ids} identities of each are held out of training. " if data.num_val_ids else ""
    chose = CHOSE[tags["selection.labels"]]
    read = (
        "By the official test labels of the target each training is evaluated after its last epoch: on fresh seeds "
        "they judged, and so decide what is champion; they chose no setting of a search and no epoch. The study's run "
        "counts every reading of them (`test_label_readings.json`)"
        if labelled
        else "The target has no labels by which it could be judged"
    )
    return (
        f"- source, with labels of identities and attributes: **{data.source}**\n"
        f"- target, images only: **{data.target}**\n"
        f"- fingerprints of the data: `{tags.get('data.fingerprint', '?')}`\n"
        f"- {held}The setting was {chose} (`selection.labels = {tags['selection.labels']}`). {read}."
    )


def _setting(config: TrialConfig, run: Run) -> str:
    flat = config.flatten()
    name = run.data.tags.get("profile", "")
    usual = profile(name).flatten() if name in ("paper", "embedded") else flat
    shown = [f"{symbol(field)} = {short(flat[field])}" for field in SHOWN if field in flat]
    others = [
        f"{field} = {short(value)}"
        for field, value in flat.items()
        if value != usual[field] and field not in SHOWN and field not in ("data.source", "data.target")
    ]
    more = f"\n\nOtherwise the profile `{name}`" + (f", but {', '.join(others)}." if others else ".") if name else ""
    return ", ".join(shown) + f"{more} `config.json` of the run has every field."


def _origin(run: Run, tags: Mapping[str, str]) -> str:
    known = run.data.tags
    versions = ", ".join(
        f"{one} {known[f'version.{one}']}" for one in ("torch", "ray", "optuna") if f"version.{one}" in known
    )
    link = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return (
        f"Study `{tags.get('mmfa.study', '?')}`, training [{tags.get('mmfa.lineage', '?')}]({link}); commit "
        f"`{known.get('git.commit', 'unknown')}`; {known.get('hardware', 'hardware not told')}; {versions}."
    )
