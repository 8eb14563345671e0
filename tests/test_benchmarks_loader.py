"""The benchmark of the loaders runs, delivers the same images by each of them, and prints its ratios."""

import re

import pytest
import torch


@pytest.fixture
def loader(benchmark_named):
    return benchmark_named("loader")


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_all_loaders_deliver_the_same_images(loader, tmp_path, suffix):
    loader.write_files(tmp_path, 12, 24)
    folder = tmp_path / suffix[1:]
    loader.pack_data(loader.folders(folder), 0, tmp_path / f"shards{suffix}", 1)
    files = [{m: str(folder / m / path.name) for m in loader.MODALITIES} for path in sorted(folder.glob("t1/*"))]
    epochs = [
        loader.torch_epochs(loader.Plain(files), 0),
        loader.mandorla_epochs(loader.folders(folder)),
        loader.mandorla_epochs(loader.shards(tmp_path, suffix)),
    ]
    for _ in range(2):
        batches = [list(epoch()) for epoch in epochs]
        for modality in loader.MODALITIES:
            plain, *others = (pixels_of(x[modality] for x in delivered) for delivered in batches)
            assert len(plain) == 12 and all(other == plain for other in others)


def pixels_of(batches) -> set[tuple[int, ...]]:
    """Return what 8-bit pixels the images in [0, 1] of an epoch are."""
    return {tuple((255 * image).round().int().flatten().tolist()) for image in torch.cat(list(batches))}


def test_it_runs(loader, capsys):
    loader.main(["--num", "16", "--size", "32", "--workers", "0", "--steps", "2"])
    said = capsys.readouterr().out
    assert len(re.findall(r"mandorla (folders|shards) +[\d,]+ \( *[\d.]+x\)", said)) == 4
    assert re.search(r"latents at random places: \d+\.\d\d GB/s", said)
    assert len(re.findall(r"\d\.\d% of \d+ ms", said)) == 3
