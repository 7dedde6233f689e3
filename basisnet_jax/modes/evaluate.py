"""--mode=evaluate: evaluates a trained run or its export."""

from basisnet_jax.modes.mode import PROCESSES, Command, Mode, next_command


def _run(command: Command) -> int:
    from basisnet_jax.evaluation.of_run import evaluate_run
    from basisnet_jax.host import distributed, installed

    results = evaluate_run(command.config, command.workdir)
    distributed.say(results.summary())
    rule = ", early_termination.csv, exit_rule.json" if results.early_termination else ""
    page = "report.html, " if installed.find_installed("plotly") else ""
    distributed.say(f"{command.workdir}/evaluation: {page}results.json{rule}, plots")
    distributed.say(next_command("predict", command.workdir, "--images='photos/*.jpg'"))
    return 0


MODE = Mode(
    help="evaluate a trained run or its export: metrics, early termination, coefficients",
    examples=("--workdir=runs/digits", "--workdir=runs/digits/export"),
    run=_run,
    flags=PROCESSES,
    takes_export=True,
    many_processes=True,
)
