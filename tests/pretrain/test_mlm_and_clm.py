"""The two text objectives on real paragraphs: static shapes, honest counts, shared weights, pictures, and learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from text_models import CAUSAL, FAMILIES, SIZES, make_encoder, make_tokenizer, packed_row

from data_tools.__main__ import main as data_tools
from data_tools.dataset.open import open_dataset
from data_tools.errors import UserError
from data_tools.stream.packed import PackedStream
from data_tools.stream.samples import Stream
from pretrain.config.load import build_config, load_config
from pretrain.config.sections import TrainConfig
from pretrain.encoders import encoder_class
from pretrain.encoders.text.tokenizer import find_tokenizer
from pretrain.engine.base import World
from pretrain.engine.ddp import DDPEngine
from pretrain.objectives.base import stack
from pretrain.objectives.clm import CLM, CLMConfig
from pretrain.objectives.mlm import MLM, MLMConfig
from pretrain.ops.linear_cross_entropy import IGNORE
from pretrain.optim.build import build_optimizer
from pretrain.run.run import build_objective
from pretrain.weights.model_folder import ModelFolder


@pytest.fixture(scope="module")
def sotu():
    return open_dataset("sample:sotu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_objective(family, data, **settings):
    encoder = make_encoder(family, data)
    if family in CAUSAL:
        return CLM(CLMConfig(**settings), encoder, data)
    return MLM(MLMConfig(**settings), encoder, data)


def examples(objective, dataset, number=4, seed=0):
    return stack([objective.example(dataset[i], np.random.default_rng([seed, i])) for i in range(number)])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_mlm_examples_have_one_shape_and_hold_the_truth(unit, data, sotu):
    objective = make_objective("bert", data, unit=unit)
    short = {"__key__": "short", "text": "the union"}
    packed = packed_row(np.random.default_rng(0), 320, 32, padding=5, first=10)
    for sample in (sotu[0], sotu[1], short, packed):
        example = objective.example(sample, np.random.default_rng(1))
        plain = objective.encoder.row_of(sample, np.random.default_rng(1))
        assert {name: value.shape for name, value in example.items()} == {
            **dict.fromkeys(("tokens", "document_ids", "position_ids"), (32,)),
            **dict.fromkeys(("masked", "target"), (10,)),
        }
        used = example["target"] != IGNORE
        assert used.any()
        assert (plain["tokens"][example["masked"][used]] == example["target"][used]).all()
        untouched = np.setdiff1d(np.arange(32), example["masked"][used])
        assert (example["tokens"][untouched] == plain["tokens"][untouched]).all()


def test_the_question_depends_on_the_random_state_alone(data, sotu):
    objective = make_objective("bert", data)
    first, again, other = (examples(objective, sotu, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tokens"], other["tokens"])


def test_clm_guesses_nothing_across_documents(data):
    objective = make_objective("gpt2", data)
    row = packed_row(np.random.default_rng(0), 320, 32, padding=4, first=10)
    target = objective.example(row, np.random.default_rng(0))["target"]
    tokens = row["tokens"]
    assert target[9] == target[27] == IGNORE and (target[28:] == IGNORE).all()
    assert (target[:9] == tokens[1:10]).all() and (target[10:27] == tokens[11:28]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_count_is_what_the_loss_sums_over(family, data, sotu):
    objective = make_objective(family, data)
    batch, phase = examples(objective, sotu), objective.phases()[0]
    whole = objective.loss(phase, batch)
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(4)]
    parts = [objective.loss(phase, row) for row in rows]
    assert whole.sum.item() == pytest.approx(sum(p.sum.item() for p in parts), rel=1e-5)
    assert objective.count(phase, batch) == sum(objective.count(phase, row) for row in rows)
    assert 0 <= whole.metrics["accuracy"] <= objective.count(phase, batch)
    # Dropping a guess from the batch takes exactly its share away.
    nothing = {**batch, "target": torch.full_like(batch["target"], IGNORE)}
    assert objective.count(phase, nothing) == 0 and objective.loss(phase, nothing).sum.item() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_embeddings_are_one_parameter_for_everybody(family, data, sotu):
    objective = make_objective(family, data)
    engine = DDPEngine(TrainConfig(), World())
    config = run_config(family, objective.config.name)
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
    shape = objective.encoder.token_embedding.shape
    for module in (engine.trainees["main"], *objective.roles.values()):
        names = [name for name, p in module.named_parameters(remove_duplicate=False) if p.shape == shape]
        assert len(names) == (module is not objective.roles.get("head"))
    state = engine.state_dict()
    engine.load_state_dict(state)
    before = objective.encoder.token_embedding.clone()
    phase, batch = objective.phases()[0], examples(objective, sotu)
    engine.backward(phase, batch, 1 / objective.count(phase, batch), last=True)
    used = torch.zeros(shape[0], dtype=torch.bool).index_fill_(0, batch["tokens"].flatten(), True)
    gradient = objective.encoder.token_embedding.grad
    assert gradient[~used].abs().sum() > 0, "tokens that no row has are pushed away by the shared decoder"
    engine.step(phase, 1.0, None)
    assert not torch.equal(before, objective.encoder.token_embedding)


def test_an_untied_head_is_a_matrix_of_its_own(data, sotu):
    objective = make_objective("llama", data, tie_embeddings=False)
    objective.loss(objective.phases()[0], examples(objective, sotu)).sum.backward()
    assert set(objective.roles) == {"encoder", "head"}
    assert objective.roles["head"].weight.grad.abs().sum() > 0
    assert objective.roles["head"].weight is not objective.encoder.token_embedding


@torch.no_grad()
def test_mlm_picture_holds_the_text_its_gaps_and_the_truth(data):
    objective = make_objective("bert", data)
    sample = {"__key__": "a", "text": "the people know it"}
    picture = objective.picture(stack([objective.example(sample, np.random.default_rng(0))] * 2))
    assert len(picture.excerpts) == 2
    spans = picture.excerpts[0].spans
    assert {kind for _, kind in spans} <= {"given", "right", "wrong", "truth"}
    assert any(kind in ("right", "wrong") for _, kind in spans)
    objective = make_objective(
        "bert", data, replacement=(0, 0, 1)
    )  # what is given is then the truth everywhere
    spans = objective.picture(stack([objective.example(sample, np.random.default_rng(0))])).excerpts[0].spans
    assert "".join(text for text, kind in spans if kind != "wrong") == "the people know it"


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
def test_clm_picture_continues_the_prompt_the_same_way_each_time(family, data, sotu):
    objective = make_objective(family, data)
    batch = examples(objective, sotu, number=3)
    first, again = objective.picture(batch), objective.picture(batch)
    assert first == again
    assert [[kind for _, kind in e.spans] for e in first.excerpts] == [["given", "generated"]] * 3
    prompt = objective.encoder.tokenizer.decode(batch["tokens"][0, :16].tolist())
    assert first.excerpts[0].spans[0][0] == prompt
    short = objective.example({"__key__": "a", "text": "we"}, np.random.default_rng(0))
    assert objective.picture(stack([short])) is None


@torch.no_grad()
def test_a_continuation_follows_the_likeliest_tokens(data):
    objective = make_objective("gpt2", data)
    prompts = torch.randint(6, 320, (2, 5), generator=torch.Generator().manual_seed(0))
    written = objective.continue_from(prompts, 6)
    assert written.shape == (2, 11) and torch.equal(written[:, :5], prompts)
    positions = torch.arange(11).expand(2, -1)
    row = {"tokens": written, "position_ids": positions, "document_ids": torch.ones_like(written)}
    hidden = objective.encoder(row)
    ranks = (hidden @ objective.output_weight.T).argsort(-1, descending=True)[:, 4:-1, :50]
    assert (ranks == written[:, 5:, None]).any(-1).all()


def run_config(family, objective, **objective_settings):
    return build_config(
        {
            "name": "tiny",
            "data": {"path": "sample:sotu"},
            "encoder": {"name": family, "max_length": 32, "initializer_range": 0.1, **SIZES[family]},
            "objective": {"name": objective, **objective_settings},
            "train": {"steps": 30, "global_batch_size": 16},
            "optimizer": {"lr": 1e-2},
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_can_be_learned_by_heart(family, sotu):
    config = run_config(family, "clm" if family in CAUSAL else "mlm")
    objective = build_objective(config, sotu)
    engine = DDPEngine(TrainConfig(), World())
    engine.prepare(objective, lambda name, roles: build_optimizer(roles, config.optimizer_for(name)))
    phase, batch = objective.phases()[0], examples(objective, sotu, number=2)
    count = objective.count(phase, batch)
    losses = []
    for _ in range(60):
        losses.append(engine.backward(phase, batch, 1 / count, last=True).sum.item() / count)
        engine.step(phase, 1.0, 1.0)
    assert losses[0] > 6
    assert losses[-1] < 0.3 * losses[0]


def test_what_cannot_work_is_said(data, tmp_path):
    with pytest.raises(UserError, match=r"MLM guesses from both sides; use encoder\.name=bert"):
        MLM(MLMConfig(), make_encoder("gpt2", data), data)
    with pytest.raises(UserError, match=r"sees what CLM must guess; use encoder\.name=gpt2 or llama"):
        CLM(CLMConfig(), make_encoder("bert", data), data)
    with pytest.raises(UserError, match=r"objective\.mask_ratio=1\.2"):
        MLM(MLMConfig(mask_ratio=1.2), make_encoder("bert", data), data)
    with pytest.raises(UserError, match=r"objective\.replacement=.*add up to 1"):
        MLM(MLMConfig(replacement=(0.8, 0.1, 0.2)), make_encoder("bert", data), data)
    nowhere = ModelFolder(tmp_path)
    with pytest.raises(UserError, match="needs a tokenizer with a mask token"):
        MLM(MLMConfig(), make_encoder("bert", nowhere, vocab_size=50), nowhere)


def test_text_recipes_are_valid(sotu):
    for name in ("mlm_sotu", "clm_sotu"):
        config, _ = load_config(name, ["encoder.max_length=32"])
        objective = build_objective(config, sotu)
        assert objective.count(objective.phases()[0], examples(objective, sotu)) > 0
    for name, layers in (("bert_base", 12), ("gpt2_124m", 12)):
        config, _ = load_config(name, [])
        encoder = encoder_class(config.encoder.name)(config.encoder, sotu)
        assert len(encoder.blocks()) == layers and encoder.dim == 768


@pytest.fixture(scope="module")
def packed(tmp_path_factory, sotu):
    """Rows of 48 tokens packed from the tokenised paragraphs, as `data.sequence_length=48` makes them."""
    out = tmp_path_factory.mktemp("tokens") / "sotu"
    tokenizer = find_tokenizer(sotu)
    assert (
        data_tools(["tokenize", "sample:sotu", str(out), "--tokenizer", str(tokenizer), "--processes", "1"])
        == 0
    )
    dataset = open_dataset(out)
    return dataset, PackedStream(Stream(dataset, seed=0), length=48)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_of_a_tokenised_data_set_train(family, packed):
    dataset, stream = packed
    config = run_config(family, "clm" if family in CAUSAL else "mlm")
    objective = build_objective(config, dataset)
    rows = [stream.sample(i) for i in range(8)]
    batch = stack([objective.example(row, np.random.default_rng(i)) for i, row in enumerate(rows)])
    phase = objective.phases()[0]
    assert batch["tokens"].shape == (8, 48)
    documents = sum(len(row["documents"]) for row in rows)
    assert documents > 8, "some row holds several documents"
    if family in CAUSAL:
        assert objective.count(phase, batch) == (batch["document_ids"] > 0).sum() - documents
    assert objective.loss(phase, batch).sum.item() / objective.count(phase, batch) < 15
    # The vocabulary and the ids are those of the tokenizer that came along.
    assert objective.encoder.vocab_size == 4096
    assert objective.encoder.tokenizer.decode(rows[0]["tokens"][rows[0]["document_ids"] == 1]).strip()
