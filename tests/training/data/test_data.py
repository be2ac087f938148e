"""Images: from Parquet to the batch, and what happens when a file is not what it should be."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from image_files import encoded, picture, write_split
from PIL import Image
from processes import wait_until_gone

from spr_or.training.data import cache, parquet
from spr_or.training.data.augment import (
    Augment,
    Draws,
    augmented,
    crop_and_flip,
    draw,
    normalise,
)
from spr_or.training.data.load import decode_split, load_data, statistics
from spr_or.training.data.parquet import DataError, find_folder, open_split
from spr_or.training.data.stream import StreamReader, random_resized_crop
from spr_or.training.recipe import DataRecipe
from spr_or.utils.files import DiskFull, write_durably

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training images in two files, three of them grey, and four to evaluate on."""
    modes = ["L" if i % 3 == 2 else "RGB" for i in range(10)]
    images = [encoded(picture(i, mode=mode)) for i, mode in enumerate(modes)]
    place = tmp_path / "set" / "data"
    labels = [i % 3 for i in range(10)]
    write_split(place / "train-00000-of-00002.parquet", images[:6], labels[:6])
    write_split(place / "train-00001-of-00002.parquet", images[6:], labels[6:])
    write_split(place / "test-00000-of-00001.parquet", images[:4], labels[:4])
    return tmp_path / "set"


def expected(number: int) -> np.ndarray:
    mode = "L" if number % 3 == 2 else "RGB"
    return np.asarray(picture(number, mode=mode).convert("RGB")).transpose(2, 0, 1)


# --- reading --------------------------------------------------------------------------------


def test_a_split_is_decoded_in_order_and_grey_becomes_rgb(folder: Path) -> None:
    split = open_split(folder, "train")
    assert (split.rows, split.classes, len(split.files)) == (10, ("cat", "dog", "owl"), 2)
    seen: list[tuple[str, int, int]] = []
    images, labels = decode_split(split, None, lambda *progress: seen.append(progress))
    assert images.dtype == np.uint8 and images.shape == (10, 3, 5, 6)
    for number in range(10):
        np.testing.assert_array_equal(images[number], expected(number))
    assert labels.tolist() == [i % 3 for i in range(10)]
    assert seen[-1] == ("decoding train", 10, 10)


def test_the_evaluation_split_is_found_and_a_missing_one_named(folder: Path) -> None:
    assert open_split(folder, None).name == "test"
    with pytest.raises(DataError, match="no split validation; it has test, train"):
        open_split(folder, "validation")
    with pytest.raises(DataError, match="no Parquet files"):
        open_split(folder.parent / "nothing", "train")


def test_a_corrupt_image_is_named_by_file_and_row(folder: Path) -> None:
    images = [encoded(picture(i)) for i in range(6)]
    images[5] = images[5][:40]
    path = folder / "data" / "train-00000-of-00002.parquet"
    write_split(path, images, [0] * 6)
    with pytest.raises(DataError, match=r"train-00000-of-00002\.parquet row 5: .*cannot be decod"):
        decode_split(open_split(folder, "train"), None)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([picture(0), picture(1, (7, 5))], [0, 1], r"row 1: .*\(5, 7\).*\(5, 6\); set data\.size"),
        ([picture(0), picture(1)], [0, -1], "row 1: label -1"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    images: list[Image.Image], labels: list[int], message: str, tmp_path: Path
) -> None:
    write_split(tmp_path / "train.parquet", [encoded(i) for i in images], labels)
    with pytest.raises(DataError, match=message):
        decode_split(open_split(tmp_path, "train"), None)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"train\.parquet is no readable Parquet file"):
        open_split(tmp_path, "train")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no column img or image; it has text, label"):
        open_split(tmp_path, "train")


def test_size_scales_and_cuts_the_centre(tmp_path: Path) -> None:
    images = [encoded(picture(0, (30, 20))), encoded(picture(1, (8, 9)))]
    write_split(tmp_path / "train.parquet", images, [0, 1])
    arrays, _ = decode_split(open_split(tmp_path, "train"), 8)
    assert arrays.shape == (2, 3, 8, 8)
    flat = Image.new("RGB", (40, 30), (10, 20, 30))
    same = np.asarray(parquet.resize_and_crop(flat, 8))
    assert (same == (10, 20, 30)).all()


def test_sources_are_folders_paths_below_the_data_folder_or_hub_ids(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPR_OR_DATA", raising=False)
    assert find_folder(str(folder)) == folder
    with pytest.raises(DataError, match='data.source = "set": no folder at set.*SPR_OR_DATA'):
        find_folder("set")
    monkeypatch.setenv("SPR_OR_DATA", str(folder.parent))
    assert find_folder("set") == folder

    asked: dict[str, object] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_folder("uoft-cs/cifar10", "abc") == folder
    assert asked["repo_id"] == "uoft-cs/cifar10" and asked["repo_type"] == "dataset"
    assert asked["revision"] == "abc"

    def offline(repo_id: str, **options: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match="cannot be fetched from the Hub: no network"):
        find_folder("uoft-cs/cifar10")


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_data(DataRecipe(eval_batch_size=1000, batch_size=1437), CPU)
    images = torch.cat([next(data.train(0))[0], next(data.evaluate(0))[0]])
    labels = torch.cat([next(data.train(0))[1], next(data.evaluate(0))[1]])
    assert images.shape == (1797, 1, 8, 8)
    digits = load_digits()
    assert torch.bincount(labels).tolist() == np.bincount(digits.target).tolist()
    # Normalised and stretched to 255 levels, the images are the originals, in another order.
    flat = images.flatten(1).double()
    low, high = flat.min(), flat.max()
    restored = ((flat - low) / (high - low) * 16).round().numpy()
    assert sorted(map(tuple, restored)) == sorted(map(tuple, digits.data))


# --- the cache ------------------------------------------------------------------------------


def test_the_cache_saves_decoding_and_is_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = DataRecipe(source=str(folder), batch_size=5, cache=tmp_path / "cache")
    first = [batch.clone() for batch, _ in load_data(recipe, CPU).train(0)]

    def never(*arguments: object) -> None:
        raise AssertionError("decoded although it is cached")

    with monkeypatch.context() as patch:
        patch.setattr("spr_or.training.data.load.decode_split", never)
        again = [batch for batch, _ in load_data(recipe, CPU).train(0)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    path = folder / "data" / "train-00000-of-00002.parquet"
    write_split(path, [encoded(picture(i)) for i in range(6)], [0] * 6)
    with pytest.raises(DataError, match=r"cache .* does not match its source .*; remove .*"):
        load_data(recipe, CPU)


@pytest.mark.parametrize("damage", ["flip", "cut", "no meta"])
def test_a_damaged_cache_is_not_used(damage: str, tmp_path: Path) -> None:
    arrays = np.arange(60, dtype=np.uint8).reshape(5, 3, 2, 2), np.arange(5)
    cache.cached(tmp_path, "a/set", {"rows": 5}, lambda: arrays)
    place = tmp_path / "a-set"
    content = bytearray((place / "images.npy").read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        (place / "images.npy").write_bytes(content)
    elif damage == "cut":
        (place / "images.npy").write_bytes(content[:-7])
    else:
        (place / "meta.json").unlink()
    with pytest.raises(DataError, match=r"the cache .*a-set is damaged .*remove .*a-set"):
        cache.cached(tmp_path, "a/set", {"rows": 5}, lambda: arrays)


def test_a_full_disk_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.np, "save", full)
    arrays = np.zeros((1, 3, 2, 2), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(DiskFull, match="the disk is full"):
        cache.cached(tmp_path, "set", {}, lambda: arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside: Path) -> None:
        aside.symlink_to("/dev/full")
        with aside.open("w") as stream:
            stream.write("new" * 10_000)

    with pytest.raises(DiskFull, match="--resume"):
        write_durably(path, write)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


# --- batches --------------------------------------------------------------------------------


def test_crop_and_flip_against_slices_of_the_padded_image() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (40, 3, 7, 5), dtype=torch.uint8, generator=generator)
    draws = draw(40, Augment(2, True), (7, 5), generator)
    assert {*draws.top.tolist()} == {*draws.left.tolist()} == set(range(5))
    assert 5 < int(draws.flip.sum()) < 35
    result = crop_and_flip(images, draws, 2)
    padded = F.pad(images, (2, 2, 2, 2))
    for i in range(40):
        top, left = int(draws.top[i]), int(draws.left[i])
        window = padded[i, :, top : top + 7, left : left + 5]
        assert torch.equal(result[i], window.flip(-1) if draws.flip[i] else window)


def test_without_crop_and_flip_images_stay() -> None:
    images = torch.randint(0, 256, (4, 1, 3, 3), dtype=torch.uint8)
    draws = draw(4, Augment(), (3, 3), torch.Generator().manual_seed(0))
    assert torch.equal(crop_and_flip(images, draws, 0), images)
    half = draws.take(slice(2))
    assert isinstance(half, Draws) and len(half.top) == 2


def test_cutout_zeroes_a_square_as_loops_do_and_changes_no_other_choice() -> None:
    images = torch.randint(0, 256, (200, 3, 7, 5), dtype=torch.uint8)
    with_holes = draw(200, Augment(2, True, 4), (7, 5), torch.Generator().manual_seed(3))
    without = draw(200, Augment(2, True), (7, 5), torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(with_holes[:3], without[:3], strict=True))
    rows, columns = with_holes.hole.T
    assert {*rows.tolist()} == set(range(7)) and {*columns.tolist()} == set(range(5))
    mean, std = statistics(images)
    result = augmented(images, with_holes, Augment(2, True, 4), mean, std)
    expected = normalise(crop_and_flip(images, without, 2), mean, std)
    for i, (row, column) in enumerate(with_holes.hole.tolist()):
        for y in range(max(0, row - 2), min(7, row + 2)):
            for x in range(max(0, column - 2), min(5, column + 2)):
                expected[i, :, y, x] = 0
    assert torch.equal(result, expected)


def test_statistics_and_normalisation_are_numpys() -> None:
    images = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    mean, std = statistics(images)
    reference = images.numpy() / 255
    np.testing.assert_allclose(mean, reference.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, reference.std((0, 2, 3)), rtol=1e-6)
    normal = normalise(images, mean, std)
    np.testing.assert_allclose(normal.mean((0, 2, 3)), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(normal.double().std((0, 2, 3), correction=0), np.ones(3), rtol=1e-6)


def test_an_epoch_follows_from_its_seed_and_takes_each_image_once() -> None:
    data = load_data(DataRecipe(batch_size=479, crop=1, flip=True), CPU)  # 1437 = 3 * 479
    first, again, other = (
        torch.cat([images for images, _ in data.train(seed)]) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    plain = load_data(DataRecipe(batch_size=479), CPU)
    rows = torch.cat([images for images, _ in plain.train(5)]).flatten(1)
    kept = torch.cat([images for images, _ in plain.train(6)]).flatten(1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, kept.tolist()))


def test_subsets_are_fixed_and_their_size_is_checked() -> None:
    recipe = DataRecipe(train_rows=50, eval_rows=7, batch_size=50)
    data = load_data(recipe, CPU)
    assert (data.train_rows, data.eval_rows) == (50, 7)
    one, two = (next(load_data(recipe, CPU).evaluate(0))[0] for _ in range(2))
    assert torch.equal(one, two) and len(one) == 7
    with pytest.raises(DataError, match=r"data\.eval_rows = 400, but the split has 360 rows"):
        load_data(DataRecipe(eval_rows=400), CPU)


# --- streams --------------------------------------------------------------------------------


def test_a_stream_gives_the_images_that_memory_gives(folder: Path, tmp_path: Path) -> None:
    common = {"source": str(folder), "batch_size": 2, "eval_batch_size": 3}
    memory = load_data(DataRecipe(memory="device", cache=tmp_path, **common), CPU)
    stream = load_data(DataRecipe(memory="stream", workers=0, **common), CPU)
    assert stream.streamed and not memory.streamed
    assert (stream.shape, stream.classes) == (memory.shape, memory.classes) == ((3, 5, 6), 3)
    for (a, x), (b, y) in zip(memory.evaluate(0), stream.evaluate(0), strict=True):
        assert torch.equal(x, y)
        assert torch.allclose(a, b)
    ours = sorted(tuple(row) for images, _ in stream.train(3) for row in images.flatten(1).tolist())
    all_rows = sorted(
        tuple(row) for images, _ in memory.train(0) for row in images.flatten(1).tolist()
    )
    np.testing.assert_allclose(ours, all_rows, rtol=1e-6)


def test_worker_processes_share_an_epoch_and_repeat_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_split(folder, "train")
    options = {"size": None, "shuffle": True, "augment": False, "pin": False}
    reader = StreamReader(split, 1, workers=2, **options)  # type: ignore[arg-type]
    epochs = [torch.cat([images for images, _ in reader(7)]) for _ in range(2)]
    assert torch.equal(epochs[0], epochs[1])
    whole = sorted(expected(i).tobytes() for i in range(10))
    assert sorted(image.numpy().tobytes() for image in epochs[0]) == whole


_READING = """
import sys
from pathlib import Path
from spr_or.training.data.parquet import open_split
from spr_or.training.data.stream import StreamReader

if __name__ == "__main__":
    options = {"size": None, "shuffle": True, "augment": False, "pin": False}
    reader = StreamReader(open_split(Path(sys.argv[1]), "train"), 1, workers=2, **options)
    while True:
        list(reader(7))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes")
def test_worker_processes_end_with_one_that_is_killed_while_they_start(
    folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "reading.py"
    script.write_text(_READING)
    parent = subprocess.Popen([sys.executable, str(script), str(folder)])
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while len(listed.read_text().split()) < 3:  # torch's two, and a process that tracks them
        time.sleep(0.01)
    children = listed.read_text().split()
    parent.kill()
    parent.wait()
    for child in children:
        wait_until_gone(child, 60)


def test_batches_of_a_stream_do_not_depend_on_who_decodes_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spr_or.training.data.stream._WINDOW", 3)
    split = open_split(folder, "train")
    options = {"size": 4, "shuffle": True, "augment": True, "pin": False, "workers": 0}
    reader = StreamReader(split, 2, **options)  # type: ignore[arg-type]
    one = list(reader(5))
    reader._workers = 3  # dealt for three workers, decoded by one
    three = list(reader(5))
    order = [[bytes(images.numpy()) for images, _ in epoch] for epoch in (one, three)]
    assert len(one) == 5 and order[0] != order[1] and sorted(order[0]) == sorted(order[1])


def test_a_streamed_subset_is_the_first_rows(folder: Path) -> None:
    recipe = DataRecipe(source=str(folder), memory="stream", workers=0, train_rows=7, eval_rows=3)
    data = load_data(recipe, CPU)
    assert (data.train_rows, data.eval_rows) == (7, 3)
    assert sum(len(labels) for _, labels in data.evaluate(0)) == 3
    assert [len(labels) for _, labels in data.train(0)] == [7]
    assert sorted(next(data.train(0))[1].tolist()) == sorted(i % 3 for i in range(7))
    with pytest.raises(DataError, match=r"data\.train_rows = 11, but the split has 10 rows"):
        load_data(recipe.model_copy(update={"train_rows": 11}), CPU)


def test_mean_and_std_can_be_given(folder: Path, tmp_path: Path) -> None:
    given = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    for memory in ("device", "stream"):
        recipe = DataRecipe(
            source=str(folder), memory=memory, workers=0, cache=tmp_path, eval_batch_size=2, **given
        )
        images, _ = next(load_data(recipe, CPU).evaluate(0))
        reference = (expected(1) / 255 - np.reshape(given["mean"], (3, 1, 1))) / np.reshape(
            given["std"], (3, 1, 1)
        )
        np.testing.assert_allclose(images[1].numpy(), reference, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="mean and std belong together"):
        DataRecipe(mean=(0.5,))
    with pytest.raises(DataError, match="data.mean has 3 numbers, but the images have 1 channels"):
        load_data(DataRecipe(**given), CPU)


def test_the_order_of_a_stream_depends_on_the_seed(folder: Path) -> None:
    split = open_split(folder, "train")
    options = {"size": None, "shuffle": True, "augment": False, "pin": False, "workers": 0}
    reader = StreamReader(split, 10, **options)  # type: ignore[arg-type]
    orders = {tuple(next(reader(seed))[1].tolist()) for seed in range(8)}
    assert len(orders) > 4


def test_a_stream_names_damaged_and_uneven_images(folder: Path) -> None:
    images = [encoded(picture(i)) for i in range(6)]
    path = folder / "data" / "train-00000-of-00002.parquet"
    options = {"size": None, "shuffle": False, "augment": False, "pin": False, "workers": 0}
    write_split(path, [*images[:5], b"no image"], [0] * 6)
    reader = StreamReader(open_split(folder, "train"), 4, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"train-00000.*row 1 of row group 1: .*cannot be decoded"):
        list(reader(0))
    write_split(path, [*images[:5], encoded(picture(5, (9, 9)))], [0] * 6)
    reader = StreamReader(open_split(folder, "train"), 4, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"set data\.size"):
        list(reader(0))


def test_random_windows_keep_to_the_image_and_follow_the_draws() -> None:
    image = picture(3, (60, 40))
    crops = [
        np.asarray(random_resized_crop(image, 8, torch.rand(10, 4, generator=g).tolist()))
        for g in (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    ]
    assert crops[0].shape == (8, 8, 3)
    assert (crops[0] == crops[1]).all() and (crops[0] != crops[2]).any()
    narrow = Image.new("RGB", (100, 2), (9, 9, 9))  # no window of this aspect fits: the centre
    window = np.asarray(random_resized_crop(narrow, 8, torch.rand(10, 4).tolist()))
    assert window.shape == (8, 8, 3) and (window == 9).all()


# --- the real sets --------------------------------------------------------------------------

REAL = Path(os.environ.get("SPR_OR_DATA") or "/nonexistent")


@pytest.mark.skipif(
    not (REAL / "cifar10").is_dir(), reason="SPR_OR_DATA names no folder with cifar10/ in it"
)
def test_cifar_has_its_known_counts() -> None:
    split = open_split(REAL / "cifar10", None)
    assert (split.name, split.rows, len(split.classes)) == ("test", 10_000, 10)
    images, labels = decode_split(split, None)
    assert images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert 0.4 < images.mean() / 255 < 0.55


@pytest.mark.skipif(
    not (REAL / "tiny-imagenet").is_dir(),
    reason="SPR_OR_DATA names no folder with tiny-imagenet/ in it",
)
def test_tiny_imagenet_streams() -> None:
    data = load_data(
        DataRecipe(
            source="tiny-imagenet", memory="stream", workers=0, size=32, random_resized_crop=True
        ),
        CPU,
    )
    assert (data.shape, data.classes, data.train_rows) == ((3, 32, 32), 200, 25_000)
    images, labels = next(data.train(0))
    assert images.shape == (128, 3, 32, 32) and len(labels.unique()) > 50


def test_held_out_images_are_never_trained_on() -> None:
    plain: dict[str, Any] = {"train_rows": 100, "batch_size": 10, "mean": (0.0,), "std": (1.0,)}
    data = load_data(DataRecipe(held_out=0.2, **plain), CPU)
    assert (data.train_rows, data.held_out_rows) == (80, 20)

    def images_of(batches: Any) -> list[bytes]:
        return [bytes(image.numpy()) for images, _ in batches for image in images]

    assert data.held_out is not None
    aside, trained = images_of(data.held_out(0)), images_of(data.train(3))
    assert sorted(aside + trained) == sorted(
        images_of(load_data(DataRecipe(**plain), CPU).train(0))
    )
    again = load_data(DataRecipe(held_out=0.2, **plain), CPU).held_out
    assert again is not None and images_of(again(9)) == aside


@pytest.mark.parametrize(
    "given",
    [
        {"size": 32},
        {"train_split": "nosuch"},
        {"eval_split": "x"},
        {"revision": "x"},
        {"memory": "stream"},
    ],
)
def test_keys_that_the_digits_would_pass_over_are_refused(given: dict[str, Any]) -> None:
    ((key, value),) = given.items()
    with pytest.raises(
        DataError, match=f"data.{key} = {value!r}: data.source = .digits. comes from no"
    ):
        load_data(DataRecipe(**given), torch.device("cpu"))


def test_a_share_that_holds_out_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.held_out = 0\.004 of 100 training images is 0"):
        load_data(DataRecipe(train_rows=100, held_out=0.004), CPU)


def test_streamed_images_cannot_be_held_out(folder: Path) -> None:
    recipe = DataRecipe(source=str(folder), memory="stream", workers=0, held_out=0.5)
    with pytest.raises(DataError, match=r"data\.held_out needs images in memory"):
        load_data(recipe, CPU)
