"""The benchmark of times measures real steps: of as many modalities, pixels and samples as it says."""

import pytest


@pytest.fixture
def speed(monkeypatch, benchmark_named):
    module = benchmark_named("speed")
    monkeypatch.setattr(module, "ROWS", 32)
    return module


def test_a_step_of_each_stage(speed):
    for stage in speed.BATCH:
        found = speed.measure_step(stage=stage, threads=1, modalities=3, size=16, samples=70)
        assert 0 < found["ms"] < 1e5
        assert found["mib"] > 50


def test_every_line_of_growth_asks_for_what_it_says(speed, monkeypatch):
    monkeypatch.setattr(speed, "GROWTH", {"modalities": (2, 3), "size": (32,), "samples": (10, 20)})
    asked = []

    def run(command, **_):
        asked.append(command[-1])
        return speed.subprocess.CompletedProcess(command, 0, 'said before\n{"ms": 6.0, "mib": 100.0}\n')

    monkeypatch.setattr(speed.subprocess, "run", run)
    lines = list(speed.growth(["vae", "diffusion"], 1))[2:]
    assert lines[1] == "| vae | modalities | 3 | 6 | 100 | 2.0 |"
    assert [line.split("|")[1:4] for line in lines if "samples" in line] == [
        [" diffusion ", " samples ", " 10 "],
        [" diffusion ", " samples ", " 20 "],
    ]
    settings = [speed.json.loads(text) for text in asked]
    assert settings[3] == {"stage": "diffusion", "threads": 1, "modalities": 2, "size": 64, "samples": 1000}
    assert settings[-1] == {"stage": "diffusion", "threads": 1, "modalities": 2, "size": 16, "samples": 20}


def test_starts_are_timed(speed, monkeypatch):
    monkeypatch.setattr(speed, "seconds", lambda command: 1.5 if "--help" in command else 0.25)
    lines = list(speed.startup(3))
    assert "| import mandorla | 0.25 |" in lines
    assert "| mandorla --help | 1.50 |" in lines


FAKE = """
import json, sys, time
asked = json.loads(sys.argv[1])
print(json.dumps({"parameters": asked["parameters"], "asked": asked}), flush=True)
for line in sys.stdin:
    print(100.0, flush=True)
"""


def test_ours_and_peers_take_steps_in_turns(speed, monkeypatch, tmp_path):
    (tmp_path / "steps.py").write_text(FAKE)
    monkeypatch.setattr(speed, "PEERS", speed.Path(speed.sys.executable))
    monkeypatch.setattr(speed, "STEPS_OF_PEERS", tmp_path / "steps.py")
    for what in speed.STEPS:
        setting = {"what": what, "modalities": 2, "size": 16, "batch": 4}
        *head, ours, theirs = speed.turns([(setting, ["fake"])], 3, 1)
        ours, theirs = ([cell.strip() for cell in line.strip("|").split("|")] for line in (ours, theirs))
        assert ours[:3] == [f"ours, {what}", "2", "4"] and ours[5:] == ["1.00", "1.00-1.00"]
        assert theirs[:3] == ["fake", "2", "4"] and theirs[4] == "100000"
        assert theirs[3] == ours[3] and int(ours[3].replace(",", "")) > 1000, "the peer is as large as ours"
        assert float(theirs[5]) == pytest.approx(100_000 / float(ours[4]), rel=0.5)


def test_a_peer_that_fails_is_told(speed, monkeypatch, tmp_path):
    (tmp_path / "steps.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(speed, "STEPS_OF_PEERS", tmp_path / "steps.py")
    monkeypatch.setattr(speed, "PEERS", speed.Path(speed.sys.executable))
    with pytest.raises(SystemExit, match="fake.* ended with status 3"):
        list(speed.turns([({"what": "vae", "modalities": 2, "size": 16, "batch": 2}, ["fake"])], 1, 1))
    monkeypatch.setattr(speed, "PEERS", tmp_path / "none" / "bin" / "python")
    with pytest.raises(SystemExit, match="run `make peers`"):
        list(speed.turns(speed.STAGE_1, 1, 1))


def test_processes_train_for_two_lengths_each(speed, monkeypatch):
    monkeypatch.setattr(speed, "SHARED_BY", [("vae", 8, (5, 25)), ("diffusion", 16, (5, 35))])
    commands = []

    def seconds(command, environment):
        commands.append(command)
        steps = int(next(key for key in command if ".steps=" in key).rpartition("=")[2])
        return 9 + steps * (0.5 if "trainer.devices=2" in command else 0.8)

    monkeypatch.setattr(speed, "seconds", seconds)
    lines = list(speed.processes(3, 1))[2:]
    assert lines[1] == "| vae | 8 | 2 | 500 | 1.60 |"
    assert lines[3] == "| diffusion | 16 | 2 | 500 | 1.60 |"
    stage_1 = [command for command in commands if "vae" in command]
    assert sum("vae.training.batch_size=8" in command for command in stage_1) == 12
    assert len(commands) == 12 + 24, "stage 2 needs a stage 1 each time"


def test_a_command_that_fails_is_heard(speed):
    with pytest.raises(SystemExit, match="status 3:\nno luck"):
        speed.seconds([speed.sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])
    assert 0 < speed.seconds([speed.sys.executable, "-c", "pass"]) < 60


def test_a_part_is_written_over_the_one_before_it_alone(speed, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "TABLES", tmp_path / "SPEED.md")
    monkeypatch.setattr(speed, "startup", lambda repeats: iter([f"| {repeats} |"]))
    monkeypatch.setattr(speed, "growth", lambda stages, threads: iter(["| grown |"]))
    speed.main(["--part", "growth", "startup", "--write", "--repeats", "2"])
    speed.main(["--part", "startup", "--write", "--repeats", "5"])
    text = (tmp_path / "SPEED.md").read_text()
    assert [line for line in text.splitlines() if line.startswith(("#", "|"))] == [
        "# Speed", "## growth", "| grown |", "## startup", "| 5 |"
    ]  # fmt: skip
    assert text.count("Made by") == 2 and text.endswith("|\n")
