"""Completion, run by the shells themselves on the scripts that the programs print."""

import shutil
import subprocess
import sys

import pytest

from accel_search import __version__, explore_upper_bounds, traversal_search, write_report

PROGRAMS = {
    "accel-search": traversal_search.main,
    "accel-explore": explore_upper_bounds.main,
    "accel-report": write_report.main,
}


@pytest.fixture
def script(capsys, tmp_path):
    """Return a function that has a program print a shell's script, and gives the file."""

    def write(program, shell):
        with pytest.raises(SystemExit) as stop:
            PROGRAMS[program](["--print_completion", shell])
        assert stop.value.code == 0
        path = tmp_path / f"{program}.{shell}"
        path.write_text(capsys.readouterr().out)
        return path

    return write


def bash(path, *words):
    """Return what bash offers where the last word is being typed."""
    code = (
        f'source "{path}"\n'
        'read -ra spec <<< "$(complete -p "$1")"\n'
        'for i in "${!spec[@]}"; do [[ ${spec[i]} = -F ]] && function=${spec[i+1]}; done\n'
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        '"$function" "$1" "${@: -1}" "${@: -2:1}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=path.parent,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_options_values_and_files(script):
    path = script("accel-search", "bash")
    assert bash(path, "accel-search", "--str") == {"--strategy"}
    assert bash(path, "accel-search", "--ver") == {"--verify", "--version"}
    assert bash(path, "accel-search", "--pipe", "SD") == {"SD1.5", "SD2.1", "SDXL"}
    assert bash(path, "accel-search", "--pipe", "SDXL", "--strategy", "") == {
        "bayes", "grid", "guided", "random",
    }  # fmt: skip
    assert bash(path, "accel-search", "--targets", "t") == {"tgate", "tome"}
    (path.parent / "trials.json").touch()
    assert "trials.json" in bash(path, "accel-search", "--replay", "tri")


@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("accel-explore", ["--retry_failed", "cuda"], {"cuda_oom"}),
        ("accel-explore", ["--executor", ""], {"local", "ray"}),
        ("accel-report", ["--stor"], {"--storage"}),
    ],
)
def test_bash_completes_the_other_programs(script, program, words, offered):
    assert bash(script(program, "bash"), program, *words) == offered


def test_a_report_of_files_and_folders_is_completed(script):
    path = script("accel-report", "bash")
    (path.parent / "accel_search_runs").mkdir()
    assert "accel_search_runs" in bash(path, "accel-report", "accel_s")


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_options_and_values(script):
    def fish(path, line):
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        return {each.split("\t")[0] for each in done.stdout.splitlines()}

    path = script("accel-search", "fish")
    assert fish(path, "accel-search --str") == {"--strategy"}
    assert fish(path, "accel-search --sched DD") == {"DDIM", "DDPM"}
    assert fish(path, "accel-search --sched E") == {"Euler", "Euler a", "Euler Karras"}
    path = script("accel-explore", "fish")
    assert fish(path, "accel-explore --isolation ") == {"config", "model"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_takes_the_scripts(script, program):
    # As docs/use.md says: a file of the command's name in a folder of $fpath.
    path = script(program, "zsh")
    folder = path.parent / "functions"
    folder.mkdir()
    path.rename(folder / f"_{program}")
    code = (
        f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -D -u\n"
        f"autoload -Uz +X _{program} && print $_comps[{program}]"
    )
    done = subprocess.run(["zsh", "-f", "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (f"_{program}", "")
    subprocess.run(["zsh", "-n", str(folder / f"_{program}")], check=True)


def test_another_shell_is_one_line(capsys):
    assert traversal_search.main(["--print_completion", "tcsh"]) == 2
    error = capsys.readouterr().err
    assert "'tcsh': expected one of bash, zsh, fish" in error and error.count("\n") == 1


def test_printing_a_script_imports_no_torch():
    code = (
        "import sys\nfrom accel_search.traversal_search import main\n"
        "try:\n    main(['--print-completion', 'bash'])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'torch', 'optuna', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_says_its_version(program, capsys):
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[program](["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{program} {__version__}\n"
