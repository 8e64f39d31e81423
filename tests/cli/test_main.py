"""The program: its output, its exit status, and that a session does the work."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunelab.cli import doctor
from prunelab.cli import main as cli
from prunelab.cli.terminal import Terminal, told
from prunelab.data.import_spec import call
from prunelab.errors import InvalidValue, MissingPackage, PruneLabError
from prunelab.ledger.events import Approved, Proposed
from prunelab.values import Cost, FrozenMap, Progress, table
from prunelab.values.machine import cores, memory

ROOT = Path(__file__).resolve().parents[2]

OWN = """
import torch
from torch import nn
import prunelab as pl

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )

def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, 8, 8, generator=generator)
    batches = list(zip(x.split(32), torch.arange(256).remainder(4).split(32)))
    return pl.Data(batches[:4], batches[4:6], batches[6:])

def number():
    return 3

def broken():
    raise RuntimeError("my own bug")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a module of the user's own."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "prunelab", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
    )


# ---------------------------------------------------------------- prune


def test_prune_writes_the_network_and_ends_with_a_table(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "prune --model mine:network --data mine:images --target-macs 0.6 --tune 3"
    assert cli.main([*arguments.split(), "--out", "small.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert (here / "small.safetensors").is_file()
    words = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert words["layer"] == ["layer", "before", "after"]
    assert words["0"][:2] == ["0", "8"]
    share = re.search(r"MACs .* ([\d.]+)%", out)
    assert share is not None
    assert float(share[1]) <= 60
    assert all(word in out for word in ("parameters", "latency", "test accuracy", "your data"))
    assert "approved" in err
    assert "tuned" in err
    assert "\r" not in err


@pytest.mark.parametrize(
    "method",
    ["group_fisher", "oracle", "magnitude", "taylor", "random", "first_k", "max_response", "apoz"],
)
def test_every_method_prunes_to_the_target(
    here: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"prune --model mine:network --data mine:images --method {method} --tune 0"
    assert cli.main([*arguments.split(), "--target-macs", "0.6", "--out", "a.safetensors"]) == 0
    out, _ = capsys.readouterr()
    share = re.search(r"MACs .* ([\d.]+)%", out)
    assert share is not None
    assert float(share[1]) <= 60
    assert f'"method": "{method}"' in next(here.glob("a*.json")).read_text()


def test_the_file_is_the_network_that_the_table_speaks_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import prunelab as pl

    arguments = "prune --model mine:network --data mine:images --target-macs 0.6 --tune 0"
    assert cli.main([*arguments.split(), "--out", "small.safetensors"]) == 0
    mine = sys.modules["mine"]
    small = pl.load_pruned(mine.network, here / "small.safetensors")
    images = next(iter(mine.images().val))[0][:1]
    share = pl.cost(small, images).macs / pl.cost(mine.network(), images).macs
    assert f"{share:.1%}" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_network(here: Path) -> None:
    networks = []
    for name in ("a.safetensors", "b.safetensors"):
        arguments = "prune --model mine:network --data mine:images --target-macs 0.6 --tune 2"
        assert cli.main([*arguments.split(), "--seed", "7", "--out", name]) == 0
        networks.append(load_file(here / name))
    first, second = networks
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model resnet200", "no network 'resnet200'. Did you mean 'resnet20'"),
        ("--data fashoin", "no data set 'fashoin'. Did you mean 'fashion'"),
        ("--data mine:images --model mine:network --method oafp", "no method 'oafp'"),
        ("--model nothere:network --data mine:images", "no module 'nothere'"),
        ("--model mine:net --data mine:images", "mine has no function 'net'"),
        ("--model mine:number --data mine:images", "it must return an nn.Module"),
        ("--model :network --data mine:images", "module:function"),
        ("--data mine:number", "pl.Data"),
        ("--out small.pt", "name it so"),
        ("--out nowhere/small.safetensors", "there is no folder"),
        ("--tune -1", "number of batches"),
        ("--method magnitude --theta 0.1", "--theta is AOFP's"),
        ("--model mine:network --data mine:images --target-macs 0", "target_macs"),
    ],
)
def test_mistakes_end_with_one_line_and_status_1(
    here: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prune", *arguments.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "prunelab: " in err
    assert "Traceback" not in err
    assert list(here.glob("*.safetensors")) == []


def test_a_bug_in_the_users_function_keeps_its_traceback(here: Path) -> None:
    with pytest.raises(RuntimeError, match="my own bug"):
        cli.main(["prune", "--model", "mine:broken", "--data", "mine:images"])


def test_ctrl_c_writes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunelab.session.session.Session.run", interrupt)
    assert cli.main(["prune", "--model", "mine:network", "--data", "mine:images"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(here.glob("*.safetensors")) == []


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["prune", "--target-macs", "half"], ["prnue"], ["prune", "--repair", "glue"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
    assert "invalid" in capsys.readouterr().err


# ---------------------------------------------------------------- doctor


def test_without_a_command_it_examines_the_machine() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("python", "torch", "torchvision", "plotly", "cores", "memory", "Fashion-MNIST"):
        assert re.search(rf"^(ok|!!)  {word} ", done.stdout, re.MULTILINE), word
    assert run("doctor").stdout == done.stdout


def test_version_is_the_packages() -> None:
    import prunelab

    assert run("--version").stdout == f"prunelab {prunelab.__version__}\n"


def test_what_is_missing_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("torch", "plotly"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    text = doctor.report(doctor.examine())
    assert re.search(r"!!  torch +not installed. pip install torch", text)
    assert re.search(r"!!  plotly .*prunelab\[lab\]", text)
    assert "will not work" in text
    assert cli.main(["doctor"]) == 1


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/pod/me\n",
                "sys/fs/cgroup/pod/me/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        ({}, 64),
    ],
    ids=["v2", "v2 of a parent", "v1 in a container", "v1 without a limit", "no groups"],
)
def test_cores_honour_control_groups(
    tmp_path: Path, files: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores(tree(tmp_path, files)) == expected


def test_cores_honour_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cores(tmp_path) == 2


def test_memory_honours_control_groups(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    tree(tmp_path, {"proc/meminfo": "MemTotal:  1000 kB\n", "proc/self/cgroup": "0::/me\n"})
    assert memory(tmp_path) == 1_024_000
    tree(tmp_path, {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/me/memory.max": "5000\n"})
    assert memory(tmp_path) == 5000


def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "not writable (Permission denied)" in doctor.report(doctor.examine())


# ---------------------------------------------------------------- lab


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been started."""
    commands: list[list[str]] = []

    def become(command: list[str], folder: Path) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(cli, "_become", become)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    return commands


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two tutorials."""
    files = {"prunelab/cli.py": "", "pyproject.toml": "", "notebooks/conftest.py": ""}
    tree(tmp_path, {**files, "notebooks/01-first-move.ipynb": "1", "notebooks/02-b.ipynb": "2"})
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "prunelab" / "cli" / "main.py"))
    return tmp_path


def test_lab_opens_a_copy_of_the_first_tutorial_also_in_a_checkout(
    checkout: Path, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    assert cli.main(["lab", "--no-browser", "--", "--port=1234"]) == 0
    (command,) = launched
    copies = checkout / "prunelab-notebooks"
    assert f"--ServerApp.root_dir={copies}" in command
    assert (copies / "01-first-move.ipynb").read_text() == "1"
    assert "--LabApp.default_url=/lab/tree/01-first-move.ipynb" in command
    assert "--no-browser" in command
    assert command[-1] == "--port=1234"


def test_lab_copies_where_it_is_told_and_overwrites_nothing(
    checkout: Path, launched: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    mine = checkout / "mine"
    assert cli.main(["lab", "--dir", str(mine)]) == 0
    assert sorted(path.name for path in mine.iterdir()) == ["01-first-move.ipynb", "02-b.ipynb"]
    (mine / "02-b.ipynb").write_text("my answers")
    assert cli.main(["lab", "--dir", str(mine)]) == 0
    assert (mine / "02-b.ipynb").read_text() == "my answers"
    assert "Kept your own 02-b.ipynb" in capsys.readouterr().out
    assert [f"--ServerApp.root_dir={mine}" in command for command in launched] == [True, True]


def test_lab_opens_without_the_news(
    checkout: Path, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    assert cli.main(["lab", "--no-browser"]) == 0
    ours, mine = os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    defaults = json.loads(Path(ours, "labconfig", "default_setting_overrides.json").read_text())
    assert defaults["@jupyterlab/apputils-extension:notification"] == {"fetchNews": "false"}
    assert mine == "mine"


def test_lab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["lab"]) == 1
    assert 'pip install "prunelab[lab]"' in capsys.readouterr().err
    assert issubclass(MissingPackage, PruneLabError)


def test_lab_says_when_the_folder_cannot_be_made(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lab", "--dir", str(checkout / "pyproject.toml" / "x")]) == 1
    assert "--dir DIR" in capsys.readouterr().err


# ---------------------------------------------------------------- the terminal


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_a_bar_with_the_time_left() -> None:
    stream, clock = Screen(), Clock()
    terminal = Terminal(stream, clock)
    for done in range(1, 6):
        clock.now += 10
        terminal(Progress(done, 10, "measuring"))
    assert stream.getvalue().split("\r")[-1].strip() == (
        "[############............]  50% measuring 5/10, 0:40 left"
    )
    terminal.line("done")
    assert stream.getvalue().endswith("\rdone\n")


def test_a_terminal_is_not_redrawn_all_the_time() -> None:
    stream, clock = Screen(), Clock()
    terminal = Terminal(stream, clock)
    for done in range(1000):
        clock.now += 0.001
        terminal(Progress(done, 1000, "measuring"))
    assert stream.getvalue().count("\r") <= 11


def test_a_pipe_gets_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal(stream, clock)
    for done in range(1, 101):
        clock.now += 0.5
        terminal(Progress(done, 100, "tuning"))
    assert stream.getvalue().splitlines() == [
        "41% tuning 41/100, 0:28 left",
        "81% tuning 81/100, 0:09 left",
    ]


def test_a_quick_job_tells_a_pipe_nothing() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, Clock())
    for done in range(100):
        terminal(Progress(done, 100, "measuring"))
    assert stream.getvalue() == ""


def test_events_are_told_in_plain_words() -> None:
    step = Approved(
        seq=1,
        kept=FrozenMap(),
        metrics=FrozenMap({"accuracy": 0.915}),
        cost=Cost(12_000_000, 1000, 0),
        fingerprint="",
        weights="",
    )
    assert told(step) == "approved  MACs 12 M, validation accuracy 91.5%"
    nothing = Proposed(seq=2, method="aofp", parameters=FrozenMap(), move=None)
    assert told(nothing) == "no further moves"


def test_tables_are_aligned() -> None:
    rows = [("", "before", "after"), ("MACs", "31 M", "15.5 M", "50%"), ("loss", "1", "2", "test")]
    assert table(rows).splitlines() == [
        "      before   after",
        "MACs    31 M  15.5 M  50%",
        "loss       1       2  test",
    ]


def test_own_modules_are_found_in_the_folder(here: Path) -> None:
    assert call("mine:number", "--data", Path.cwd()) == 3
    with pytest.raises(InvalidValue, match=r"no module 'mine\.deeper'"):
        call("mine.deeper:number", "--data", Path.cwd())
