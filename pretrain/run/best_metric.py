"""Whether what `checkpoint.keep_best` names will be measured, told before the first step."""

from __future__ import annotations

from data_tools.errors import UserError, nearest
from pretrain.checkpoint.best import Best, refuse_unknown
from pretrain.config.sections import Config
from pretrain.evaluation.look import measure_names
from pretrain.evaluation.probes import probe_names
from pretrain.evaluation.validation import loss_names
from pretrain.objectives.base import Objective
from pretrain.tracking.metrics import read_metrics

SWITCHES = {
    "probe": "set probe.every, probe.train and probe.test",
    "validation": "give data.validation held-out samples",
    "representation": "leave representation.every out",
}
"""By kind, what has it measured."""


def check_keep_best(config: Config, objective: Objective) -> None:
    """Raise a `UserError` for a metric that is not measured in this run, with the nearest that is.

    What an objective measures on held-out samples beside its loss is known once it has measured it, at step 0: a new
    run that names something else ends there, one that goes on ends here.
    """
    best = Best(config.checkpoint.keep_best)
    if best.name is None:
        return
    known = {
        "probe": probe_names(config.probe),
        "validation": loss_names(config, objective),
        "representation": measure_names(config.representation),
    }
    if best.kind not in known:
        names = [f"{kind}.{name}" for kind, own in known.items() for name in own]
        raise UserError(
            f"checkpoint.keep_best={best.name}: must be <kind>.<metric>, of what is measured while the run trains;"
            f"{nearest(best.name, names)} known: {', '.join(names)}"
        )
    names = known[best.kind]
    if not names:
        raise UserError(
            f"checkpoint.keep_best={best.name}: is not measured in this run; {SWITCHES[best.kind]}"
        )
    if best.kind == "validation" and best.metric not in names:
        told = [line for line in read_metrics(config.folder) if line["kind"] == "validation"]
        if not told:
            return
        names = [name for name, value in told[-1].items() if isinstance(value, float) and name != "time"]
    refuse_unknown(best.kind, best.metric, names)
