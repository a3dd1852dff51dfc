"""The comparison from beginning to end. Whatever is done stands in a file, so started again it does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from data_tools.errors import UserError
from data_tools.storage.atomic import write_atomically
from data_tools.storage.objects import redacted
from pretrain.compare.candidates import Candidate, continue_from, find_candidates, read_settings
from pretrain.compare.chart import Point, draw_chart
from pretrain.compare.frozen import probe_frozen, raw_input, untrained
from pretrain.compare.jobs import JobFailedError, Jobs, read_spent
from pretrain.compare.options import Options, claim_folder, describe_duration
from pretrain.compare.plan import PRETRAINING, Rung, finalist_share, keep_better, plan_rungs
from pretrain.compare.runs import find_collapse, measure_pace, settings_of_run, train_to, write_recipe
from pretrain.compare.samples import Samples, prepare_samples
from pretrain.compare.table import (
    Row,
    best_of,
    describe_table,
    describe_verdict,
    find_winner,
    frozen_ways,
    order_rows,
    tuned_way,
)
from pretrain.compare.tuned import Tuning
from pretrain.compare.tuned import write_recipe as write_tuning_recipe
from pretrain.evaluation.embed import open_encoder
from pretrain.release.release import load_run_encoder
from pretrain.run.folder import RunFolder

RESULT, TABLE, CHART, FULL = "compare.json", "compare.md", "compare.png", "full.yaml"
SCRATCH, RAW, UNTRAINED = "from scratch", "raw input", "untrained encoder"


@dataclass(frozen=True)
class Plan:
    """Who runs how far, decided once and kept in `plan.json`."""

    rungs: list[Rung]
    tuning: float
    """Seconds for each row that is fine-tuned."""
    left_out: dict[str, str]
    """Why a candidate does not take part, by its name."""


def compare(options: Options, jobs: Jobs, say: Callable[[str], None]) -> list[str]:
    """Do what is not yet done, write the results, and return the lines that tell them.

    Raises:
        UserError: settings or data are wrong, or the budget is too small.
        StoppedError: it was asked to stop; the same call goes on.
    """
    with closing(RunFolder(options.out)) as folder:
        folder.lock("out")
        claim_folder(options)
        return Comparison(options, jobs, say).run()


class Comparison:
    """One comparison, and what it has found so far."""

    def __init__(self, options: Options, jobs: Jobs, say: Callable[[str], None]) -> None:
        self.options, self.jobs, self.say, self.out = options, jobs, say, options.out
        self.failed: dict[str, str] = {}
        """Why a candidate was taken out on the way."""
        self.curves: dict[str, list[Point]] = {}
        self.steps: dict[str, int] = {}
        """That a candidate has taken."""
        self.frozen: dict[str, dict[str, Any]] = {}
        """By row, what `probe_frozen` found last."""

    def run(self) -> list[str]:
        options = self.options
        self.samples: Samples = prepare_samples(options)
        found, left_out = find_candidates(options, self.samples)
        self.candidates = {candidate.name: candidate for candidate in found}
        self.probe_controls()
        plan = self.make_plan(left_out)
        finalists = self.run_rungs(plan)
        continued = self.continue_encoder(plan, finalists) if options.encoder else None
        ways = self.tune_rows(plan, [*finalists, *([continued] if continued else [])])
        return self.tell(plan, [*finalists, *([continued] if continued else [])], ways)

    def probe(self, row: str, place: str, open_objective: Callable[[], Any], **how: Any) -> dict[str, Any]:
        """What the row's frozen features are worth; from the file at `place` where it has been measured."""
        path = self.out / place
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
        else:
            self.jobs.check_stop()
            found = probe_frozen(
                path, open_objective(), self.samples, self.options.label, self.options.shots, **how
            )
        self.frozen[row] = found
        return found

    def probe_controls(self) -> None:
        """The raw input, the encoder before it learns anything, and the user's own."""
        shared = next(
            (c for c in self.candidates.values() if not c.note), next(iter(self.candidates.values()))
        )

        def build() -> Any:
            return untrained({**shared.values, "seed": self.options.seed})

        self.say(f"controls: {RAW}, {UNTRAINED} ({shared.encoder})")
        self.probe(RAW, "frozen/raw.json", build, features=raw_input)
        self.probe(UNTRAINED, "frozen/untrained.json", build)
        if folder := self.options.encoder:
            self.probe(str(folder), "frozen/encoder.json", lambda: open_encoder(folder))

    def make_plan(self, left_out: dict[str, str]) -> Plan:
        """Measure every candidate, and share out the budget; as it was planned, where it was."""
        path = self.out / "plan.json"
        if not path.exists():
            write_atomically(path, json.dumps(asdict(self.share_budget(left_out)), indent=1) + "\n")
        values = json.loads(path.read_text())
        plan = Plan([Rung(**rung) for rung in values["rungs"]], values["tuning"], values["left_out"])
        last = plan.rungs[-1]
        for name in last.stop_at:
            self.say(f"  {name}: at most {last.stop_at[name]:,} steps")
        return plan

    def share_budget(self, left_out: dict[str, str]) -> Plan:
        options, paces = self.options, {}
        for name, candidate in self.candidates.items():
            self.say(f"measuring {name}")
            try:
                paces[name] = measure_pace(self.jobs, candidate, options.seed)
            except JobFailedError as error:
                left_out[name] = str(error)
        if not paces:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise UserError(f"--objectives: none of them takes a step on these data ({reasons})")
        probing = self.frozen[UNTRAINED]["seconds"]
        used = sum(read_spent(self.out).values()) + sum(found["seconds"] for found in self.frozen.values())
        left = options.budget - used
        if left <= 0:
            raise UserError(
                f"--budget: measuring alone took {describe_duration(used)}; give several times that, or name fewer "
                "--objectives"
            )
        seconds = PRETRAINING * left
        if options.encoder:  # one more run, as long as a finalist's
            seconds /= 1 + finalist_share(len(paces))
        rungs = plan_rungs(paces, seconds, probing)
        rows = rungs[-1].runs + 1 + (2 if options.encoder else 0)
        for name in paces:
            settings = settings_of_run(
                self.candidates[name], self.out / "runs" / name, rungs[-1].stop_at[name], rungs[0].stop_at[name],
                options.seed,
            )  # fmt: skip
            write_recipe(self.out / "recipes" / f"{name}.yaml", settings)
        return Plan(rungs, (1 - PRETRAINING) * left / rows, left_out)

    def run_rungs(self, plan: Plan) -> list[str]:
        """Train and probe rung by rung; the names of those that came to the end of the last, best first."""
        running = list(plan.rungs[0].stop_at)
        for number, rung in enumerate(plan.rungs):
            if number:
                running = keep_better({name: self.score(name) for name in running}, rung.runs)
            self.say(f"rung {number + 1} of {len(plan.rungs)}: {', '.join(running)}")
            running = [name for name in running if self.climb(name, number, rung.stop_at[name])]
        return keep_better({name: self.score(name) for name in running}, len(running))

    def score(self, name: str) -> float:
        """What survivors are chosen by: the best probe of its features, on the samples that choose."""
        best = best_of(frozen_ways(self.frozen[name]))
        assert best is not None, "there are three probes"
        return fmean(best.select)

    def climb(self, name: str, number: int, step: int) -> bool:
        """Train to a step and probe; whether that went well."""
        result = self.out / "rungs" / str(number) / f"{name}.json"
        refused = result.with_suffix(".failed")
        if refused.exists():
            self.failed[name] = refused.read_text().strip()
            return False
        try:
            if not result.exists():
                train_to(self.jobs, name, step, number)
            run = self.out / "runs" / name
            found = self.probe(name, f"rungs/{number}/{name}.json", lambda: load_run_encoder(run).objective)
        except (JobFailedError, UserError) as error:
            self.failed[name] = str(error)
            refused.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(refused, f"{error}\n")
            self.say(f"  {name} is taken out: {error}")
            return False
        best = best_of(frozen_ways(found))
        assert best is not None, "there are three probes"
        self.curves.setdefault(name, []).append((self.seconds_of(name), best))
        self.steps[name] = step
        self.say(f"  {name}: {step:,} steps, {100 * fmean(best.select):.1f} % ({best.name})")
        return True

    def seconds_of(self, name: str) -> float:
        """Seconds of its pretraining so far, in the order of its rungs."""
        spent, rungs = read_spent(self.out), len(self.curves.get(name, [])) + 1
        return sum(spent.get(f"train_{name}_{number}", 0.0) for number in range(rungs))

    def continue_encoder(self, plan: Plan, finalists: list[str]) -> str | None:
        """Train the user's encoder further by the best objective that goes with it; the run's name."""
        assert self.options.encoder, "asked for where there is one"
        for name in finalists:
            try:
                candidate = continue_from(self.candidates[name], self.options.encoder, self.samples)
                pace = measure_pace(self.jobs, candidate, self.options.seed)
            except (JobFailedError, UserError) as error:
                self.failed[f"{name}_continued"] = str(error)
                continue
            seconds = sum(rung.seconds for rung in plan.rungs)
            steps = max(1, int((seconds - pace.start) / pace.step))
            self.candidates[candidate.name] = candidate
            recipe = self.out / "recipes" / f"{candidate.name}.yaml"
            if not recipe.exists():
                folder = self.out / "runs" / candidate.name
                write_recipe(recipe, settings_of_run(candidate, folder, steps, steps, self.options.seed))
            self.say(f"going on from {self.options.encoder}: {candidate.name}, {steps:,} steps")
            if self.climb(candidate.name, 0, steps):
                return candidate.name
        return None

    def tune_rows(self, plan: Plan, pretrained: list[str]) -> dict[str, Any]:
        """What fine-tuning reaches, by row, and why it failed in `failed`."""
        options, found = self.options, {}
        if not pretrained:
            return {}
        asked = read_settings(options.settings, list(self.candidates)).get("finetune", [])
        recipe = write_tuning_recipe(options, self.samples, asked)
        tuning = Tuning(self.jobs, self.samples, recipe, plan.tuning)
        runs = {name: self.out / "runs" / name for name in pretrained}
        encoders = {SCRATCH: runs[pretrained[0]], **runs}
        if options.encoder:
            encoders[str(options.encoder)] = options.encoder
        for name, encoder in encoders.items():
            self.say(f"fine-tuning: {name}")
            try:
                file = "scratch" if name == SCRATCH else "encoder" if encoder == options.encoder else name
                found[name] = tuning.tune(file, encoder, "scratch" if name == SCRATCH else "full")
            except (JobFailedError, UserError) as error:
                self.failed[name] = f"fine-tuning: {error}"
        return found

    def make_rows(self, plan: Plan, contending: list[str], tuned: dict[str, Any]) -> list[Row]:
        names = [RAW, UNTRAINED, SCRATCH, *([str(self.options.encoder)] if self.options.encoder else [])]
        runs = [name for name in self.candidates if name not in plan.left_out]
        rows = []
        for name in [*names, *runs, *(name for name in self.failed if name.endswith("_continued"))]:
            ways = [*(frozen_ways(self.frozen[name]) if name in self.frozen else []),
                    *([tuned_way(tuned[name])] if name in tuned else [])]  # fmt: skip
            rows.append(self.make_row(name, ways, plan, contending))
        rows += [Row(name, notes=(f"left out: {reason}",)) for name, reason in plan.left_out.items()]
        return list({row.name: row for row in rows}.values())

    def make_row(self, name: str, ways: list[Any], plan: Plan, contending: list[str]) -> Row:
        notes, points = [], self.curves.get(name, [])
        if name in self.candidates:
            notes += [self.candidates[name].note, find_collapse(self.out / "runs" / name) or ""]
            if name not in contending and name not in self.failed:
                notes.append(f"stopped after rung {len(points)} of {len(plan.rungs)}")
        notes.append(self.failed.get(name, ""))
        seconds = points[-1][0] if points else 0.0
        contends = name in contending
        return Row(name, tuple(ways), self.steps.get(name, 0), seconds, contends, tuple(filter(None, notes)))

    def tell(self, plan: Plan, contending: list[str], tuned: dict[str, Any]) -> list[str]:
        """Write table, JSON, picture and the winner's recipe; the lines for the user."""
        rows, shots = self.make_rows(plan, contending, tuned), self.options.shots
        table, verdict = describe_table(rows, shots), describe_verdict(rows)
        lines = [
            table,
            "",
            "mean ± standard deviation over draws of the labels, on samples that chose nothing",
            *verdict,
        ]
        if winner := find_winner(rows):
            lines += self.write_full(winner.name)
        values = {
            "rows": [asdict(row) for row in order_rows(rows)],
            "winner": winner.name if winner else None,
            "verdict": verdict,
            "seconds": read_spent(self.out),
            "settings": self.options.identity(),
        }
        write_atomically(self.out / RESULT, json.dumps(values, indent=1) + "\n")
        write_atomically(self.out / TABLE, "\n".join(lines) + "\n")
        draw_chart([row for row in rows if row.best], self.curves, shots, self.out / CHART)
        return [*lines, f"written: {self.out / TABLE}, {self.out / RESULT}, {self.out / CHART}"]

    def write_full(self, name: str) -> list[str]:
        """The recipe of the winner on all of the data, for as long as the comparison took, and its command."""
        candidate: Candidate = self.candidates[name]
        pace = measure_pace(self.jobs, candidate, self.options.seed)
        steps = max(1, int(self.options.budget / pace.step))
        values = {**candidate.values, "name": f"{name}_full"}
        values["data"] = {**values["data"], "path": redacted(self.options.data)}
        values["train"] = {**{k: v for k, v in values["train"].items() if k != "epochs"}, "steps": steps}
        path = write_recipe(self.out / FULL, values)
        return [
            f"in full ({steps:,} steps, about {describe_duration(self.options.budget)} here; longer: train.steps=):",
            f"  python -m pretrain {path}",
        ]
