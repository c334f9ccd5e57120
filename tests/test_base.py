"""Options that would have no effect: neither listed by `--help` nor accepted."""

import re

import pytest

from helpers.__main__ import main

NO_EFFECT = {
    "train dcgan": "--style --paired --hand-drawn-prob --lambda-sketch --separation-target --fine-lines",
    "experiment segmentation": "--train.seed",
    "experiment real-vs-synthetic": "--train.seed --classifier.balance --classifier.lesion-only",
    "experiment balancing": "--train.seed --classifier.balance --classifier.lesion-only",
    "experiment ablation": "--train.seed",
    "experiment small-data": "--train.seed",
    "experiment real-vs-generated": "--train.seed",
    "experiment backbones": "--classifier.arch",
    "experiment segmenters": "--segmenter.arch --segmenter.encoder-name",
}


def options_of(command: str, capsys) -> set[str]:
    """The options that the help of a command lists."""
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))


@pytest.mark.parametrize("command", NO_EFFECT)
def test_options_without_effect_are_not_listed_and_refused_with_the_reason(command, capsys):
    options = options_of(command, capsys)
    assert {"--dataset", "--out"} < options
    for option in NO_EFFECT[command].split():
        assert option not in options
        for arguments in ([option, "3"], [f"{option}=3"]):
            assert main([*command.split(), *arguments]) == 2
            assert re.search(rf"error: {option} has no effect here: .* (decides?|see|has)\b", capsys.readouterr().err)


def test_the_same_options_are_listed_where_they_have_an_effect(capsys):
    assert {"--gan-train.seed", "--classifier.arch"} < options_of("experiment balancing", capsys)
    assert {"--train.seed", "--classifier.balance"} < options_of("experiment backbones", capsys)
    assert {"--seed", "--style", "--no-paired"} < options_of("train cgan", capsys)
