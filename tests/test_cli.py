import errno
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import noise
from PIL import Image

import sail_cli
from sail_cli import COMMANDS, main
from sail_encoder import __version__
from sail_encoder.commands.arguments import options_of

HELP = Path(__file__).parent / "golden" / "help.txt"


def sail(*arguments):
    return subprocess.run([sys.executable, "-m", "sail_cli", *arguments], capture_output=True, text=True)


def function_of(command):
    module, name = command.function.split(":")
    return getattr(importlib.import_module(module), name)


def test_overview_is_as_recorded(capsys):
    for arguments in (["--help"], []):
        assert main(arguments) == 0
        assert capsys.readouterr().out == HELP.read_text()


@pytest.mark.parametrize("arguments", [["segment"], ["segment", "--help"]])
def test_a_command_of_two_words_has_an_overview_of_its_own(arguments, capsys):
    assert main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [row.split()[:2] for row in rows] == [["segment", word] for word in ("train", "eval", "predict", "refer")]


@pytest.mark.parametrize("statement", ["import sail_encoder", "import sail_cli; sail_cli.main(['--help'])"])
def test_nothing_heavy_is_imported_early(statement):
    heavy = ("torch", "transformers", "timm", "pyarrow", "numpy", "scipy", "sklearn", "PIL")
    check = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_typed_and_explained(name, capsys):
    function = function_of(COMMANDS[name])
    assert inspect.getdoc(function).splitlines()[0] == COMMANDS[name].summary
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    options = options_of(function)
    for parameter in inspect.signature(options).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"{parameter.name}: " in options.__doc__
        assert f"--{parameter.name}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exract"], "no command 'exract', did you mean 'extract'?"),
        (["segment", "trian"], "no command 'segment trian', did you mean 'segment train'?"),
        (["extract", "x", "--out", "o", "--layrs", "1"], "no option --layrs, did you mean 'layers'?"),
        (["extract", "x", "--out", "o", "--pool", "avg"], "--pool cannot be avg; allowed is none, mean, max"),
        (["extract", "x", "--out", "o", "--norm", "si"], "--norm cannot be si; allowed is true or false"),
        (["extract", "x", "--out", "o", "--token_budget", "big"], "allowed is a whole number or auto"),
        (["extract", "x"], "--out is missing"),
        (["extract", "x", "--out"], "--out needs a value"),
        (["extract", "--out", "o"], "source is missing"),
        (["extract", "nowhere", "--out", "o"], "no file or folder nowhere"),
        (["info", "sail-tny"], "no model 'sail-tny'"),
        (["info", "sail-tiny", "more"], "'more' is one argument too many"),
        (["estimate", "--size", "big"], "resize 'big' is not understood"),
        (["estimate", "--device", "abacus"], "device 'abacus' is unknown"),
        (["estimate", "--device", "h100", "--images", "0"], "--images cannot be 0; allowed is 1 or more"),
        (["estimate", "--device", "h100", "--images", "-3"], "--images cannot be -3"),
        (["estimate", "--device", "h100", "--size", "0x5"], "sides start at 1 pixel"),
        (["estimate", "--device", "h100", "--max_tokens", "0"], "max_tokens is 0; allowed is 1 or more"),
        (["estimate", "--device", "h100", "--layers", "6"], "has -6 to 5"),
        (["pca", "nowhere.jpg"], "no such file"),
        (["pca", "x.jpg", "--max_tokens", "-1"], "max_tokens is -1; allowed is 1 or more"),
        (["pca", "x.jpg", "--resize", "0"], "sides start at 1 pixel"),
        (["pca", "x.jpg", "--out", "x.abc"], "--out x.abc names no kind of picture that can be written"),
        (["convert", "sail-tiny", "new", "--max_shard_size", "big"], "use a size such as 500MB or 5GB"),
        (["convert", "sail-tiny", "new", "--encoder_only", "true", "--layers", "0"], "layers=0 cannot be loaded"),
    ],
)
def test_mistakes_are_one_line_with_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("sail: ")
    assert message in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "x.png", "--out", "o", "--readers", "0"], "--readers cannot be 0; allowed is 1 or more"),
        (["extract", "x.png", "--out", "o", "--readers", "-1"], "--readers cannot be -1"),
        (["extract", "x.png", "--out", "o", "--token_budget", "0"], "--token_budget cannot be 0"),
        (["extract", "x.png", "--out", "o", "--token_budget", "-5"], "--token_budget cannot be -5"),
        (["extract", "x.png", "--out", "o", "--max_tokens", "0"], "max_tokens is 0; allowed is 1 or more"),
        (["extract", "x.png", "--out", "o", "--layers", "last0"], "need 1 to 6 layers"),
        (["extract", "x.png", "--out", "o", "--shard", "1/8", "--overwrite", "true"], "delete o once"),
        (["extract", "x.png", "--out", "x.png"], "cannot write x.png: File exists"),
        (["extract", "x.png", "--out", "x.png/o"], "cannot write x.png/o: Not a directory"),
        (["pca", "x.png", "--layer", "6"], "has -6 to 5"),
        (["similarity", "x.png", "--at", "3"], "--at 3 is no patch; give its row and column, such as 3,5"),
        (["similarity", "x.png", "--at", "99,0"], "--at 99,0: patch (99, 0) is outside the"),
        (["pca", "x.png", "--out", "x.png/a.png"], "cannot write x.png: File exists"),
        (["convert", "sail-tiny", "x.png"], "x.png is a file; name a new folder"),
        (["convert", "sail-tiny", "x.png/a"], "Not a directory; correct that or name another folder"),
        (["demo", "--out", "x.png"], "cannot write x.png/photographs: Not a directory"),
    ],
)
def test_mistakes_with_an_image_end_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    Image.fromarray(noise(30, 40)).save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sail: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sail {__version__}\n"


def test_a_configuration_is_shown_and_can_be_given_again(tmp_path, capsys):
    for option in ("--print_config", "--print-config=skip_default"):
        with pytest.raises(SystemExit) as ended:
            main(["estimate", "--layers", "-1", "--images", "7", option])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert ("device: auto" in shown) == (option == "--print_config")
        (tmp_path / "run.yaml").write_text(shown)
        assert main(["estimate", "--config", str(tmp_path / "run.yaml"), "--device", "h100"]) == 0
        assert capsys.readouterr().out.startswith("grid ")


def test_unknown_keys_in_a_config_name_the_nearest(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("source: [a]\nout: o\nlayer: 0\n")
    assert main(["extract", "--config", str(config)]) == 2
    assert "no option --layer, did you mean 'layers'?" in capsys.readouterr().err


def test_a_config_and_flags_together(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "sail_encoder.commands.estimate.estimate",
        lambda images=1, size="448": seen.update(images=images, size=size) or 0,
    )
    config = tmp_path / "run.yaml"
    config.write_text("images: 7\nsize: 28x42\n")
    assert main(["estimate", "--config", str(config), "--images", "9"]) == 0
    assert seen == {"images": 9, "size": "28x42"}


def test_values_may_begin_with_a_minus(monkeypatch):
    seen = {}

    def extract(source: list[str], out: str, layers: str = "-1") -> int:
        seen.update(source=source, layers=layers)
        return 0

    monkeypatch.setattr("sail_encoder.commands.extract.extract", extract)
    assert main(["extract", "a", "b", "--layers", "-4,-1", "--out", "o", "c"]) == 0
    assert seen == {"source": ["a", "b", "c"], "layers": "-4,-1"}


@pytest.mark.parametrize("word", ["null", "~", "null ", "None", "12"])
def test_words_are_words(word, monkeypatch):
    """Also those that YAML takes for nothing; a flag takes `null` for the value of options that may have none."""
    seen = {}

    def chat(image: str | None = None, prompt: str | None = None, output: str | None = "x") -> int:
        seen.update(image=image, prompt=prompt, output=output)
        return 0

    monkeypatch.setattr("sail_encoder.commands.chat.chat", chat)
    assert main(["chat", "a.jpg", word, "--output", "null"]) == 0
    assert seen == {"image": "a.jpg", "prompt": word, "output": None}
    assert main(["chat", word]) == 0
    assert seen == {"image": word, "prompt": None, "output": "x"}


@pytest.fixture
def command_that_raises(monkeypatch):
    def install(error):
        def broken() -> int:
            raise error

        monkeypatch.setitem(sail_cli.COMMANDS, "broken", sail_cli.Command("test_cli:broken", "Broken."))
        monkeypatch.setattr(sys.modules[__name__], "broken", broken, raising=False)
        monkeypatch.setitem(sys.modules, "test_cli", sys.modules[__name__])

    return install


def test_bugs_are_not_hidden(command_that_raises, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command_that_raises(KeyError("a bug"))
    assert main(["broken"]) == 2
    (report,) = tmp_path.glob("sail-error-*.txt")
    assert f"unexpected KeyError: 'a bug'; please report it with {report}" in capsys.readouterr().err
    assert "Traceback (most recent call last)" in report.read_text()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("no such model,\n  or no network"), "no such model, or no network"),
    ],
)
def test_what_the_system_refuses_is_one_line(command_that_raises, capsys, error, line):
    command_that_raises(error)
    assert main(["broken"]) == 2
    assert capsys.readouterr().err == f"sail: {line}\n"


@pytest.mark.parametrize("place", ["--out {}/new/run", "--out={}"])
def test_an_unexpected_error_is_one_line_and_a_file_beside_the_output(place, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("the disk sang\nand danced")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sail_encoder.commands.extract.list_images", fail)
    (tmp_path / "out").mkdir()
    arguments = ["extract", "photos", *place.format(tmp_path / "out").split()]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    (report,) = (tmp_path / "out").glob("sail-error-*.txt")
    assert line == f"sail: unexpected RuntimeError: the disk sang and danced; please report it with {report}"
    written = report.read_text()
    assert written.startswith(f"command   sail {' '.join(arguments)}\n")
    assert '"torch": "' in written
    assert 'raise RuntimeError("the disk sang' in written
