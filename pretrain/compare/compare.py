"""The comparison from beginning to end. Whatever is done stands in a file, so started again it does the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from data_tools.errors import UserError
from pretrain.compare.candidates import build_untrained, continue_from, find_candidates, read_settings
from pretrain.compare.frozen import probe_frozen, raw_input
from pretrain.compare.jobs import Jobs, read_spent
from pretrain.compare.memory import PLAN, Found, attempt, claim_folder, remember
from pretrain.compare.options import Options, describe_duration
from pretrain.compare.plan import (
    LEAST_STEPS,
    Pace,
    Rung,
    count_survivors,
    finalist_share,
    keep_better,
    least_seconds,
    needed_seconds,
    plan_rungs,
    share_seconds,
)
from pretrain.compare.results import write_full, write_results
from pretrain.compare.runs import find_collapse, measure_pace, settings_of_run, train_to, write_recipe
from pretrain.compare.samples import prepare_samples
from pretrain.compare.table import Point, Row, Way, find_winner
from pretrain.compare.tuned import Tuning
from pretrain.evaluation.embed import open_encoder
from pretrain.objectives.base import Objective
from pretrain.release.release import load_run_encoder
from pretrain.run.folder import RunFolder

SCRATCH, RAW, UNTRAINED = "from scratch", "raw input", "untrained encoder"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How the budget is shared out, decided once and kept in `plan.json`."""

    rungs: list[Rung]
    tuning: float
    """Seconds for each row that is fine-tuned."""


def compare(options: Options, jobs: Jobs, say: Say) -> list[str]:
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
    """One comparison: its candidates, and a row of the table for each of them and each control."""

    def __init__(self, options: Options, jobs: Jobs, say: Say) -> None:
        """Split the data and build every candidate once."""
        self.began = time.monotonic()
        self.options, self.jobs, self.say, self.out = options, jobs, say, options.out
        say("splitting the data, and building each candidate once")
        self.samples = prepare_samples(options)
        self.candidates, left_out = find_candidates(options, self.samples)
        asked = read_settings(options.settings, [*self.candidates, *left_out]).get("finetune", [])
        self.tuning = Tuning(jobs, self.samples, options, asked)
        self.rows: dict[str, Row] = {}
        for name in (RAW, UNTRAINED, SCRATCH, *([str(options.encoder)] if options.encoder else [])):
            self.rows[name] = Row(name)
        for name, candidate in self.candidates.items():
            self.rows[name] = Row(name, notes=[candidate.note] if candidate.note else [])
        for name, reason in left_out.items():
            self.take_out(name, reason)

    def run(self) -> list[str]:
        probing = self.probe_controls()
        paces = {name: pace for name in self.candidates if (pace := self.measure(name))}
        plan = self.make_plan(paces, probing)
        finalists = self.run_rungs(plan, list(paces))
        if self.options.encoder:
            finalists += self.continue_encoder(plan, finalists)
        for name in finalists:
            self.rows[name].contends = True
        self.tune_rows(plan, finalists)
        winner = find_winner(list(self.rows.values()))
        pace = self.measure(winner.name) if winner else None
        full = write_full(self.options, self.candidates[winner.name], pace) if winner and pace else []
        return write_results(self.options, list(self.rows.values()), full)

    def take_out(self, name: str, reason: str) -> None:
        self.rows.setdefault(name, Row(name)).notes.append(f"left out: {reason}")
        self.say(f"  {name} is left out: {reason}")

    def probe_controls(self) -> float:
        """Probe the raw input, the encoder before it learns anything, and the user's own; seconds to probe one."""
        shared = next((c for c in self.candidates.values() if not c.note), None)
        shared = shared or next(iter(self.candidates.values()))
        folder = self.options.encoder

        def build() -> Objective:
            return build_untrained({**shared.values, "seed": self.options.seed})

        self.say(f"controls: {RAW}, {UNTRAINED} ({shared.encoder})")
        probes = {RAW: ("raw", partial(self.probe, build, features=raw_input)),
                  UNTRAINED: ("untrained", partial(self.probe, build))}  # fmt: skip
        if folder:
            probes[str(folder)] = ("encoder", partial(self.probe, partial(open_encoder, folder)))
        self.rows[UNTRAINED].notes, seconds = [shared.encoder], 0.0
        for name, (file, probe) in probes.items():
            found = remember(self.out / "frozen" / f"{file}.json", probe)
            self.rows[name].probes, seconds = [Way(**way) for way in found["ways"]], found["seconds"]
        return seconds

    def probe(self, open_objective: Callable[[], Objective], **how: Any) -> Found:
        self.jobs.check_stop()
        return probe_frozen(open_objective(), self.samples, self.options.shots, **how)

    def measure(self, name: str) -> Pace | None:
        """How fast a candidate is; None where it cannot take a step."""

        def take_steps() -> Found:
            self.say(f"measuring {name}")
            return asdict(measure_pace(self.jobs, self.candidates[name], self.options.seed))

        found = attempt(self.out / "measured" / f"{name}.json", take_steps)
        if reason := found.get("failed"):
            self.take_out(name, reason)
            return None
        return Pace(**found)

    def make_plan(self, paces: dict[str, Pace], probing: float) -> Plan:
        """The plan that was made, else one for what is left of the budget; and the recipes of the runs."""
        if not paces:
            raise UserError(f"--objectives: none of them takes a step on these data; see {self.out / 'logs'}")
        values = remember(self.out / PLAN, lambda: asdict(self.share_budget(paces, probing)))
        plan = Plan([Rung(**rung) for rung in values["rungs"]], values["tuning"])
        for name, most in plan.rungs[-1].stop_at.items():
            self.say(f"  {name}: at most {most:,} steps")
            self.write_run(name, most, plan.rungs[0].stop_at[name])
        return plan

    def share_budget(self, paces: dict[str, Pace], probing: float) -> Plan:
        budget, encoder = self.options.budget, self.options.encoder
        # All that is fine-tuned: those of the last rung, from scratch, the user's encoder as it is and continued.
        rows = count_survivors(len(paces))[-1] + 1 + (2 if encoder else 0)
        least_tuning = rows * self.measure_tuning(next(iter(paces)))
        # Since this start, or in processes of all starts, whichever is more.
        used = max(time.monotonic() - self.began, sum(read_spent(self.out).values()))
        # The user's own encoder is trained as long as a finalist.
        runs = 1 + finalist_share(len(paces)) if encoder else 1.0
        least = least_seconds(paces, probing) * runs
        needed = used + needed_seconds(least, least_tuning)
        if budget < needed:
            raise UserError(
                f"--budget: {describe_duration(budget)} is too little: {describe_duration(used)} went by to measure, "
                f"each of {len(paces)} is to take {LEAST_STEPS} steps at least, and fine-tuning takes "
                f"{describe_duration(least_tuning)} at least; give {math.ceil(needed)}s or more, "
                f"better {math.ceil(needed / 20)}min, or name fewer --objectives"
            )
        pretraining, tuning = share_seconds(budget - used, least_tuning)
        return Plan(plan_rungs(paces, pretraining / runs, probing), tuning / rows)

    def measure_tuning(self, name: str) -> float:
        """Seconds that fine-tuning one encoder takes at least, by that of `name`, which was measured."""
        encoder = self.out / "measured" / name

        def take_steps() -> Found:
            self.say("measuring fine-tuning")
            return asdict(self.tuning.measure_pace(encoder))

        found = attempt(self.out / "measured" / "finetune.json", take_steps)
        return 0.0 if found.get("failed") else self.tuning.least_seconds(Pace(**found))

    def write_run(self, name: str, steps: int, first: int) -> None:
        """The recipe of a candidate's run, whose first rung has `first` steps."""
        folder, seed = self.out / "runs" / name, self.options.seed
        settings = settings_of_run(self.candidates[name], folder, steps, first, seed)
        write_recipe(self.out / "recipes" / f"{name}.yaml", settings)

    def run_rungs(self, plan: Plan, running: list[str]) -> list[str]:
        """Train and probe rung by rung; the names of those that came to the end of the last, best first."""
        for number, rung in enumerate(plan.rungs):
            scores = (
                {name: self.rows[name].score for name in running} if number else dict.fromkeys(running, 0.0)
            )
            kept = keep_better(scores, rung.runs)
            for name in running:
                if name not in kept:
                    self.rows[name].notes.append(f"stopped after rung {number} of {len(plan.rungs)}")
            self.say(f"rung {number + 1} of {len(plan.rungs)}: {', '.join(kept)}")
            running = [name for name in kept if self.climb(name, number, rung.stop_at[name])]
        return keep_better({name: self.rows[name].score for name in running}, len(running))

    def climb(self, name: str, number: int, step: int) -> bool:
        """Train to a step and probe; whether that went well."""

        def train_and_probe() -> Found:
            run = train_to(self.jobs, name, step, number)
            return self.probe(lambda: load_run_encoder(run).objective)

        row = self.rows[name]
        found = attempt(self.out / "rungs" / str(number) / f"{name}.json", train_and_probe)
        row.notes = [note for note in row.notes if not note.startswith("collapse")]
        row.notes += find_collapse(self.out / "runs" / name)
        if reason := found.get("failed"):
            self.take_out(name, reason)
            return False
        row.probes = [Way(**way) for way in found["ways"]]
        assert row.frozen is not None, "there are three probes"
        spent = read_spent(self.out)
        seconds = sum(spent.get(f"train_{name}_{before}", 0.0) for before in range(number + 1))
        row.points.append(Point(step, seconds, row.frozen))
        self.say(f"  {name}: {step:,} steps, {100 * fmean(row.frozen.select):.1f} % ({row.frozen.name})")
        return True

    def continue_encoder(self, plan: Plan, finalists: list[str]) -> list[str]:
        """Train the user's encoder further by the best objective that goes with it; the run's name, if there is one."""
        assert self.options.encoder, "asked for where there is one"
        for name in finalists:
            try:
                candidate = continue_from(self.candidates[name], self.options.encoder)
            except UserError as error:
                self.take_out(f"{name}_continued", str(error))
                continue
            self.candidates[candidate.name] = candidate
            self.rows[candidate.name] = Row(candidate.name)
            if pace := self.measure(candidate.name):
                seconds = sum(rung.seconds for rung in plan.rungs)
                steps = max(1, int((seconds - pace.start) / pace.step))
                self.write_run(candidate.name, steps, steps)
                self.say(f"going on from {self.options.encoder}: {candidate.name}, {steps:,} steps")
                if self.climb(candidate.name, 0, steps):
                    return [candidate.name]
        return []

    def tune_rows(self, plan: Plan, pretrained: list[str]) -> None:
        """Fine-tune what came to the end, from scratch, and the user's encoder."""
        if not pretrained:
            return
        options, tuning = self.options, self.tuning
        runs: dict[str, Path] = {name: self.out / "runs" / name for name in pretrained}
        encoders = {SCRATCH: runs[pretrained[0]], **runs}
        self.rows[SCRATCH].notes = [self.candidates[pretrained[0]].encoder]
        if options.encoder:
            encoders[str(options.encoder)] = options.encoder
        for name, encoder in encoders.items():
            file = {SCRATCH: "control.scratch", str(options.encoder): "control.encoder"}.get(name, name)
            method = "scratch" if name == SCRATCH else "full"
            self.say(f"fine-tuning: {name}")
            found = attempt(
                self.out / "tuned" / f"{file}.json", partial(tuning.tune, file, encoder, method, plan.tuning)
            )
            if reason := found.get("failed"):
                self.rows[name].notes.append(f"fine-tuning: {reason}")
                continue
            self.rows[name].tuned = Way(**found["way"])
            if found.get("longer"):  # which a comparison from before has not kept
                self.rows[name].notes.append("fine-tuned as long as its time allowed: longer may be better")
            tuning.steps = tuning.steps or found["tried"]
