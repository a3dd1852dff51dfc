"""Hooks as a user would write them."""

from data_tools.errors import UserError


class Counts:
    """Remembers how often it ran, and looks at the objective as probes do."""

    def __init__(self, context, every=2):
        self.context, self.every = context, every
        self.steps = []

    def run(self, step):
        self.steps.append(step)
        with self.context.engine.evaluating(self.context.objective):
            training = self.context.objective.encoder.training
        if self.context.tracker:
            self.context.tracker.event("counted", step, {"steps": self.steps, "training": training})

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


class Never:
    every = 0

    def __init__(self, context):
        pass


class Refuses:
    """Fails at one step, by a mistake that the other ranks would know nothing of, or by a fault of its own."""

    def __init__(self, context, at, mistake):
        self.every, self.error = at, UserError("planted") if mistake else ArithmeticError("planted")

    def run(self, step):
        if step:
            raise self.error
