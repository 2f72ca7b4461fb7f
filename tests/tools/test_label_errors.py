"""Labels against detections: folds, ranking, and how many removed labels are found again."""

import csv
import io
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssdlib.__main__ import main
from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.common.files import write_json
from ssdlib.config import BCCD_CLASSES, ModelConfig
from ssdlib.data import smears
from ssdlib.data import source as bccd
from ssdlib.data.duplicates import same_fields
from ssdlib.data.formats.voc import read_objects
from ssdlib.data.images import write_image
from ssdlib.data.writers import write_layout
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.tools.label_errors import folds
from ssdlib.tools.label_errors.correct import apply_decisions
from ssdlib.tools.label_errors.folds import (
    FoldSettings,
    check_init,
    out_of_fold,
    read_predictions,
    split_folds,
)
from ssdlib.tools.label_errors.rank import CUTS, KINDS, LabelIssue, count_table, find_label_issues, issues_csv
from ssdlib.tools.label_errors.review import ReviewSession, ReviewWidget
from ssdlib.tools.label_errors.search import search
from ssdlib.training.trainer import Trainer
from tests.benchmarks.label_errors import (
    SMEARS_SEED,
    damage_found,
    damage_labels,
    found_again,
    hide_labels,
    shipped_judge,
    told_apart,
)
from tests.tools.label_cases import HEIGHT, WIDTH, A, B, C, folder_of, found


@pytest.fixture
def issues_of(tmp_path):
    """The issues of one field with these labels and detections, beside a field that makes up the medians."""

    def find(labels, detections, **options):
        source = folder_of(tmp_path / "data", {"field": labels, "other": [("RBC", B)] * 3})
        known = found(("RBC", 0.9, B), image="other")
        issues = find_label_issues(source.dataset("all"), [detections, known], **options)
        return [issue for issue in issues if issue.image == "field"]

    return find


@pytest.mark.parametrize(
    ("labels", "detections", "expected"),
    [
        ([], (), []),
        ([("RBC", A)], [("RBC", 0.9, A)], []),
        ([], [("RBC", 0.9, A)], [("unlabeled", "RBC", "add", 0.9)]),
        ([("RBC", A)], [("RBC", 0.9, A), ("WBC", 0.8, B)], [("unlabeled", "WBC", "add", 0.8)]),
        ([("RBC", A)], [("RBC", 0.9, A), ("RBC", 0.4, B)], []),  # too unsure
        ([], [("RBC", 0.9, A), ("WBC", 0.8, A)], [("unlabeled", "RBC", "add", 0.9)]),  # one object
        ([("RBC", A)], [("RBC", 0.9, A), ("RBC", 0.8, (12, 10, 52, 50))], []),  # found twice
        # A platelet upon a labeled red cell is an object of its own.
        (
            [("RBC", A)],
            [("RBC", 0.9, A), ("Platelets", 0.9, (20, 20, 32, 32))],
            [("unlabeled", "Platelets", "add", 0.819)],
        ),
        ([("RBC", A)], (), [("no_detection", "RBC", "remove", 1.0)]),
        ([("RBC", A)], [("RBC", 0.3, A)], []),
        ([("RBC", A)], [("RBC", 0.9, (30, 10, 70, 50))], [("badly_located", "RBC", "move", 0.6)]),
        ([("RBC", A)], [("WBC", 0.9, A)], [("other_class", "RBC", "rename", 0.9)]),
        ([("RBC", A)], [("WBC", 0.9, A), ("RBC", 0.8, A)], []),  # in two minds
        (
            [("RBC", A), ("RBC", (10, 10, 50, 49))],
            [("RBC", 0.9, A)],
            [("duplicate_box", "RBC", "remove", 0.975)],
        ),
        ([("RBC", (20, 20, 20, 20))], (), [("point_box", "RBC", "remove", 1.0)]),
        ([("RBC", (210, 20, 240, 60))], (), [("outside_box", "RBC", "remove", 1.0)]),
        (
            [("RBC", (180, 20, 220, 60))],
            [("RBC", 0.9, (180, 20, 200, 60))],
            [("outside_box", "RBC", "move", 0.5)],
        ),
        (
            [("RBC", (20, 20, 24, 24))],
            [("RBC", 0.9, (20, 20, 24, 24))],
            [("tiny_box", "RBC", "remove", 0.99)],
        ),
        ([("RBC", (0, 20, 4, 24))], [("RBC", 0.9, (0, 20, 4, 24))], []),  # cut off by the border
    ],
)
def test_each_kind_of_issue(issues_of, labels, detections, expected):
    issues = issues_of(labels, found(*detections))
    # Two labels on one object leave one of them without a detection of its own; that is no second issue.
    assert [(s.kind, s.class_name, s.action) for s in issues] == [row[:3] for row in expected]
    assert [s.score for s in issues] == pytest.approx([row[3] for row in expected], abs=2e-3)


def test_an_issue_says_what_should_be_where(issues_of):
    moved, renamed = (30, 10, 70, 50), (100, 20, 140, 60)
    labels = [("RBC", A), ("RBC", renamed), ("RBC", C)]
    detections = found(("RBC", 0.9, moved), ("WBC", 0.8, renamed), ("Platelets", 0.7, (150, 100, 165, 115)))
    issues = {s.kind: s for s in issues_of(labels, detections)}
    located, other, missed, new = (
        issues[kind] for kind in ("badly_located", "other_class", "no_detection", "unlabeled")
    )
    assert (located.object, located.box, located.proposed_box) == (1, A, moved)
    assert (other.heading, other.proposed_box) == ("RBC -> WBC 0.80", renamed)
    assert (missed.object, missed.proposed_box) == (3, None)
    assert (new.object, new.detector_score) == (None, pytest.approx(0.7))
    assert "nearest label overlaps it by 0.00" in new.evidence
    for issue in issues.values():
        assert LabelIssue.from_dict(json.loads(json.dumps(issue.to_dict()))) == issue


def test_issues_come_by_kind_and_by_falling_score(issues_of):
    issues = issues_of([("RBC", C)], found(("RBC", 0.6, A), ("WBC", 0.95, B)))
    listed = [("unlabeled", "WBC"), ("unlabeled", "RBC"), ("no_detection", "RBC")]
    assert [(s.kind, s.class_name) for s in issues] == listed
    assert len({s.id for s in issues}) == 3
    rows = list(csv.DictReader(io.StringIO(issues_csv(issues))))
    assert [(row["kind"], row["action"]) for row in rows] == [(s.kind, s.action) for s in issues]
    assert [float(rows[0][name]) for name in ("xmin", "ymin", "xmax", "ymax")] == list(B)
    assert rows[2]["proposed_xmin"] == ""
    counts = [int(number) for _, number in count_table(issues).rows]
    assert counts == [2, 1, *[0] * (len(KINDS) - 2), 3]
    assert len(issues_csv([]).splitlines()) == 1


def test_cuts_say_what_is_listed(issues_of):
    unsure = found(("RBC", 0.3, A))
    assert [s.kind for s in issues_of([("RBC", A)], unsure, cuts={**CUTS, "no_detection": 0.7})] == []
    assert [s.kind for s in issues_of([("RBC", B)], unsure, cuts={**CUTS, "no_detection": 1.0})] == [
        "no_detection"
    ]
    assert [s.kind for s in issues_of([], unsure, cuts={**CUTS, "unlabeled": 0.2})] == ["unlabeled"]


def test_a_network_that_finds_thousands_of_cells_needs_little_memory(issues_of):
    """As one does that has learned nothing: no matrix of all of its detections with each other."""
    corners = np.random.default_rng(0).uniform((0, 0), (WIDTH - 2, HEIGHT - 2), (4000, 2))
    boxes = np.hstack([corners, corners + 2])
    cells = [("RBC", 0.3, tuple(box)) for box in boxes.tolist()]
    tracemalloc.start()
    try:
        assert issues_of([("RBC", A)], found(*cells))
        assert tracemalloc.get_traced_memory()[1] < 4000 * 4000
    finally:
        tracemalloc.stop()


def test_as_many_predictions_as_images(tmp_path):
    source = folder_of(tmp_path, {"field": [("RBC", A)]})
    with pytest.raises(DataError, match="1 images and 0 predictions"):
        find_label_issues(source.dataset("all"), [])


# Folds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "together", "folds", "sizes"),
    [
        ("ab", [], 2, [1, 1]),
        ("abcdefg", [], 3, [2, 2, 3]),
        ("abcdef", [("a", "b"), ("b", "c")], 2, [3, 3]),
        ("abcde", [("a", "nowhere")], 5, [1] * 5),
    ],
)
def test_folds_are_even_whole_and_always_the_same(ids, together, folds, sizes):
    parts = split_folds(ids, together, folds)
    assert sorted(map(len, parts)) == sizes
    assert sorted(image_id for part in parts for image_id in part) == sorted(ids)
    assert parts == split_folds(reversed(ids), [(b, a) for a, b in together], folds)
    for a, b in together:
        assert all((a in part) == (b in part) or b not in ids for part in parts)


@pytest.mark.parametrize(
    ("ids", "together", "folds", "message"),
    [
        ("", [], 2, "at least two"),
        ("a", [], 2, "at least two"),
        ("ab", [("a", "b")], 2, "at least two"),
        ("abc", [], 4, "choose from 2 to 3"),
        ("abc", [], 1, "choose from 2 to 3"),
    ],
)
def test_folds_that_cannot_be(ids, together, folds, message):
    with pytest.raises(ConfigError, match=message):
        split_folds(ids, together, folds)


def test_copies_of_a_field_are_in_one_fold(smears_copy):
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        first = smears_copy / kind / f"SmearImage_00000.{suffix}"
        (smears_copy / kind / f"SmearImage_copy.{suffix}").write_bytes(first.read_bytes())
    fields = {image.image_id: image.path for image in bccd.open_folder(smears_copy).labels.images}
    assert same_fields(fields) == [("SmearImage_00000", "SmearImage_copy")]
    assert same_fields({}) == []


def test_all_is_every_labeled_image(smears_copy):
    (smears_copy / "ImageSets/Main/val.txt").write_text("")
    (smears_copy / "JPEGImages/SmearImage_00011.jpg").unlink()
    assert len(bccd.open_folder(smears_copy).split_ids("all")) == 11
    for file in (smears_copy / "JPEGImages").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"can be used: .* has no image"):
        bccd.open_folder(smears_copy).split_ids("all")


@pytest.mark.slow
def test_each_fold_is_trained_once_without_its_images(tmp_path, monkeypatch):
    source = folder_of(
        tmp_path / "data", {f"field-{k}": [("RBC", (10 + 9 * k, 10, 50 + 9 * k, 50))] for k in range(4)}
    )
    monkeypatch.setattr(folds, "same_fields", lambda images, progress: [])
    trained, real = [], Trainer.fit

    def fit(self, **options):
        trained.append([sample.image_id for sample in self.train_data.samples])
        return real(self, **options)

    monkeypatch.setattr(Trainer, "fit", fit)
    tiny = {
        "recipe.model.width": 0.0625,
        "recipe.batch_size": 2,
        "recipe.warmup_steps": 1,
        "recipe.smears": 0,
        "precision": "fp32",
    }
    settings = FoldSettings(folds=2, epochs=1, overrides=tiny, device="cpu", progress=False)
    out = tmp_path / "out"
    first = out_of_fold(source, out, settings)
    assert [d.image for d in first] == [f"field-{k}" for k in range(4)]
    plan = json.loads((out / "folds.json").read_text())["images"]
    assert [sorted(ids) for ids in trained] == plan[::-1]
    assert not list(out.rglob("last.pt"))
    (out / "predictions/fold-2.json").unlink()  # as if stopped before it was written
    (out / "folds/1/checkpoints/last.pt").touch()  # as if killed right after fold-1.json
    again = out_of_fold(source, out, settings)
    assert len(trained) == 3 and not list(out.rglob("last.pt"))
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, atol=0.011, rtol=0)
    with pytest.raises(ConfigError, match="made with other settings: folds was 2, is 3"):
        out_of_fold(source, out, replace(settings, folds=3))


@pytest.mark.slow
def test_the_file_of_the_initial_weights_is_needed_once(tmp_path, monkeypatch):
    source = folder_of(
        tmp_path / "data", {f"field-{k}": [("RBC", (10 + 9 * k, 10, 50 + 9 * k, 50))] for k in range(4)}
    )
    monkeypatch.setattr(folds, "same_fields", lambda images, progress: [])
    network = ModelConfig(width=0.0625, batch_norm=True)
    save_model(build_model(network), tmp_path / "mine.safetensors")
    small = {
        "recipe.model.width": 0.0625,
        "recipe.batch_size": 2,
        "recipe.warmup_steps": 1,
        "recipe.smears": 0,
    }
    settings = FoldSettings(
        folds=2,
        epochs=1,
        init=str(tmp_path / "mine.safetensors"),
        overrides={**small, "precision": "fp32"},
        device="cpu",
        progress=False,
    )
    with pytest.raises(SsdError, match="no weights at"):
        out_of_fold(source, tmp_path / "out", replace(settings, init=str(tmp_path / "none")))
    assert not (tmp_path / "out/initial.safetensors").exists()
    whole = out_of_fold(source, tmp_path / "whole", settings)
    real = Trainer.fit

    def stop(self, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", lambda self, **options: (real(self, **options), stop(self)))
    with pytest.raises(KeyboardInterrupt):
        out_of_fold(source, tmp_path / "stopped", settings)
    monkeypatch.setattr(Trainer, "fit", real)
    (tmp_path / "mine.safetensors").unlink()
    again = out_of_fold(source, tmp_path / "stopped", settings)
    for a, b in zip(whole, again, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "classes", "smears"),
    [("bccd", BCCD_CLASSES, True), ("smears", BCCD_CLASSES, False), ("voc", ("cell",), False)],
)
def test_drawn_smears_are_added_to_real_cells_of_their_classes_alone(smears_source, kind, classes, smears):
    source = replace(smears_source, kind=kind, class_names=classes, synthetic=kind == "smears")
    recipe = FoldSettings(epochs=3, overrides={"recipe.batch_size": 5}).profile(source).recipe
    assert bool(recipe.smears) == smears
    assert (recipe.epochs, recipe.batch_size, recipe.model.class_names) == (3, 5, classes)


def test_weights_that_saw_the_labels_are_refused(tmp_path, smears_source):
    def check(source, init):
        check_init(source, source.dataset("all"), str(init))

    with pytest.raises(ConfigError, match="BCCD's train split"):
        check(folder_of(tmp_path / "data", {"BloodImage_00003": [("RBC", A)]}), "shipped")
    # The fixture is drawn with the seed of the shipped weights' own smears.
    with pytest.raises(ConfigError, match="this very seed"):
        check(smears_source, "shipped")
    source = folder_of(tmp_path / "other", {"field": [("RBC", A)]})
    check(source, "shipped")
    model = build_model(ModelConfig(width=0.0625, batch_norm=True))
    save_model(model, tmp_path / "own.safetensors", data={"fingerprint": source.fingerprint})
    save_model(model, tmp_path / "other.safetensors", data=None)
    with pytest.raises(ConfigError, match="trained on this very data"):
        check(source, tmp_path / "own.safetensors")
    check(source, tmp_path / "other.safetensors")
    # One source of several is enough, on either side.
    both = bccd.join([smears_source, source])
    with pytest.raises(ConfigError, match="this very seed"):
        check(both, "shipped")
    with pytest.raises(ConfigError, match="trained on this very data"):
        check(both, tmp_path / "own.safetensors")
    save_model(model, tmp_path / "both.safetensors", data=both.describe(root=False))
    with pytest.raises(ConfigError, match="trained on this very data"):
        check(source, tmp_path / "both.safetensors")


def test_predictions_are_found_by_id_or_file_name(tmp_path):
    source = folder_of(tmp_path / "data", {"one": [("RBC", A)], "two.b": []})
    dataset, folder = source.dataset("all"), tmp_path / "predictions"
    by_path = found(("RBC", 0.9, A), image="/elsewhere/one.png").to_dict()
    write_json(folder / "a.json", [by_path, found(image="stranger").to_dict()])
    write_json(folder / "b.json", {"detections": [found(image="two.b").to_dict()]})
    assert [(d.image, len(d)) for d in read_predictions(folder, dataset)] == [("one", 1), ("two.b", 0)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (None, "holds no predictions: there must be"),
        ([], "for 1 of 1 images, such as field"),
        ("nonsense", "not a list"),
        ([found(image="field").to_dict()] * 2, "two predictions for field"),
        ([{**found(image="field").to_dict(), "width": 7}], "is for|are for an image of"),
        ([{"image": "field"}], "not a detection record"),
    ],
)
def test_predictions_that_cannot_be_used(tmp_path, records, message):
    source = folder_of(tmp_path / "data", {"field": [("RBC", A)]})
    if records is not None:
        write_json(tmp_path / "predictions/a.json", records)
    with pytest.raises(SsdError, match=message):
        read_predictions(tmp_path / "predictions", source.dataset("all"))


# The measured test -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted_smears(tmp_path_factory):
    """24 smears that the shipped weights never saw, and their detections on them."""
    root = tmp_path_factory.mktemp("smears") / "whole"
    smears.write_dataset(root, train=24, val=0, test=0, seed=SMEARS_SEED, progress=False)
    source = bccd.open_folder(root)
    return source, {detections.image: detections for detections in shipped_judge(source, progress=False)}


def test_removed_labels_are_found_again(predicted_smears, tmp_path):
    whole, predictions = predicted_smears
    removed = hide_labels(whole, tmp_path / "hidden", share=0.15, seed=0)
    source = bccd.open_folder(tmp_path / "hidden")
    detections = [predictions[image_id] for image_id in source.split_ids("all")]
    issues = find_label_issues(source.dataset("all"), detections)
    result = found_again(issues, removed, "RBC")
    assert result["removed"] >= 30
    assert result["precision"] >= 0.9
    assert result["recall"] >= 0.8
    # And hardly anything is said against the labels that are there, all of which are right.
    assert sum(s.kind != "unlabeled" for s in issues) <= 2


def test_damaged_labels_are_told_from_sound_ones(predicted_smears, tmp_path):
    whole, predictions = predicted_smears
    damage = damage_labels(whole, tmp_path / "damaged")
    result = damage_found(bccd.open_folder(tmp_path / "damaged"), predictions, damage)
    assert result["any"]["damaged"] > 30
    assert result["any"]["average_precision"] > 0.9
    assert result["invented"]["average_precision"] > 0.9


def test_measures_of_nothing_are_no_numbers():
    for rows, expected in (
        ([], None),
        ([(None, 0.9)], None),
        ([(None, 0.1), ("moved", 0.9)], 1.0),
        ([(None, 0.9), ("moved", 0.1)], 0.5),
    ):
        assert told_apart(rows)["average_precision"] == expected
    result = found_again([], {"field": []})
    assert (result["precision"], result["recall"], result["at_90"], result["curve"]) == (None, None, None, [])


# Everything together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["label-errors", "suspects"])
def test_command_line_from_predictions_to_a_corrected_copy(tmp_path, capsys, verb):
    source = folder_of(tmp_path / "data", {"field": [("RBC", A)], "empty": []})
    before = source.fingerprint
    write_json(tmp_path / "p/all.json", [found(("WBC", 0.4, B)).to_dict(), found(image="empty").to_dict()])
    command, out = ["data", verb, "--data", str(source.folder)], tmp_path / "out"
    predicted = ["--predictions", str(tmp_path / "p"), "--min-score", "0.3"]
    assert main([*command, *predicted, "--out", str(out), "-q"]) == 0
    assert "unlabeled" in capsys.readouterr().out
    names = {"decisions.json", "overlay", "label_errors.csv", "label_errors.html"}
    assert {path.name for path in out.iterdir()} == names
    decisions = json.loads((out / "decisions.json").read_text())
    for record in decisions["issues"]:
        record["decision"] = "accept"
    write_json(out / "decisions.json", decisions)
    copy = ["--apply", str(out / "decisions.json"), "--out", str(tmp_path / "copy")]
    assert main([*command, *copy]) == 0
    assert "add: 1, remove: 1" in capsys.readouterr().out
    corrected = bccd.open_folder(tmp_path / "copy").dataset("all")
    assert corrected.class_counts() == {"WBC": 1, "RBC": 0, "Platelets": 0}
    assert source.fingerprint == before
    assert main([*command, *copy]) == 1
    assert "already holds something" in capsys.readouterr().err


def test_other_layouts_are_corrected_in_a_copy_as_voc(tmp_path):
    voc = folder_of(tmp_path / "voc", {f"field-{k}": [("RBC", A), ("RBC", B)] for k in range(4)})
    source = bccd.open_folder(write_layout(voc, tmp_path / "coco", "coco"))
    ids = source.split_ids("all")
    write_json(tmp_path / "p/all.json", [found(("RBC", 0.9, A), image=image).to_dict() for image in ids[:-1]])
    write_json(tmp_path / "p/last.json", [found(("RBC", 0.9, A), ("WBC", 0.9, C), image=ids[-1]).to_dict()])
    issues = search(source, tmp_path / "out", FoldSettings(), predictions=tmp_path / "p")
    assert [(s.kind, s.object) for s in issues] == [("unlabeled", None), *[("no_detection", 2)] * 4]
    overlay = tmp_path / "out/overlay/Annotations" / f"{ids[-1]}.xml"
    assert read_objects(overlay) == [("RBC", A), ("RBC", B), ("WBC", C)]
    session = ReviewSession(tmp_path / "out/decisions.json", source)
    while session.decide("accept"):
        pass
    apply_decisions(source, session.path, tmp_path / "copy")
    copy = bccd.open_folder(tmp_path / "copy")
    assert copy.dataset("all").class_counts() == {"WBC": 1, "RBC": 4, "Platelets": 0}
    assert ReviewWidget(session.path).session.current is None  # opens the COCO folder


def test_no_issues_are_a_result(tmp_path):
    source = folder_of(tmp_path / "data", {"field": [("RBC", A)]})
    write_json(tmp_path / "p/all.json", [found(("RBC", 0.9, A)).to_dict()])
    assert search(source, tmp_path / "out", FoldSettings(), predictions=tmp_path / "p") == []
    assert "No possible label errors were found" in (tmp_path / "out/label_errors.html").read_text()
    assert json.loads((tmp_path / "out/decisions.json").read_text())["issues"] == []


def test_a_folder_without_any_label_says_so(tmp_path, capsys):
    write_image(tmp_path / "data/JPEGImages/one.png", np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    (tmp_path / "data/Annotations").mkdir()
    command = ["data", "label-errors", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "Label some images first" in capsys.readouterr().err
