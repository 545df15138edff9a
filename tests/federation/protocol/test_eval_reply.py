"""Sites' scores: their sum does not depend on the order, and impossible ones are refused."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import Changes, ClassScores, EvalReplySpec, InvalidReplyError, Scores, SideScores
from tests.federation.protocol.helpers import CLASSES
from tests.federation.protocol.hostile import assert_presentable, change, drop, manifest_fault, mutate, text
from tests.refusals import refused


def spec(**expected):
    return EvalReplySpec("site-0", 3, CLASSES, **expected)


def score(clips=4, right=2, right5=3, cosine=1.5, loss=2.0):
    return ClassScores(clips=clips, right_at_1=right, right_at_5=right5, cosine=cosine, loss=loss)


def with_t5(right=1, cosine=0.5, loss=8.0, clips=4):
    return score(clips).model_copy(update={"t5": SideScores(right_at_1=right, cosine=cosine, loss=loss)})


def changed(of_class, better, worse):
    return of_class.model_copy(update={"changes": Changes(better=better, worse=worse)})


def sent_scores():
    before = Scores({"dog": score(), "rain": score(6, 2, 6, -1.0, 0.0)})
    after = Scores({"dog": changed(score(4, 4, 4), 2, 0), "rain": changed(score(6, 3, 6), 2, 1)})
    return {"before": before, "after": after}


def test_scores_are_unchanged_by_encoding_and_decoding():
    metrics = wire.encode_scores("site-0", 3, sent_scores())
    assert wire.decode_scores(metrics, 10, spec()) == sent_scores()


def test_predictions_are_unchanged_by_encoding_and_add_up():
    predicted = score().model_copy(update={"predicted": {"dog": 3, "rain": 1}})
    metrics = wire.encode_scores("site-0", 3, {"after": Scores({"dog": predicted})})
    got = wire.decode_scores(metrics, 4, spec(models=["after"], confusion=True))["after"]
    merged = Scores.merge([got, got, Scores({"dog": score().model_copy(update={"predicted": {"cat": 4}})})])
    assert merged.classes["dog"].predicted == {"cat": 4, "dog": 6, "rain": 2}


def test_the_t5_side_is_unchanged_by_encoding_and_adds_up_by_clips():
    scores = {"before": Scores({"dog": score()}), "after": Scores({"dog": changed(with_t5(1, 0.5, 8.0), 1, 1)})}
    metrics = wire.encode_scores("site-0", 3, scores)
    got = wire.decode_scores(metrics, 4, spec(t5_models=("after",)))
    assert got == scores
    assert got["before"].t5 is None
    other = Scores({"dog": with_t5(4, 2.5, 1.0, clips=6), "rain": with_t5(0, -1.5, 3.0, clips=2)})
    added = Scores.merge([got["after"], other])
    assert added.classes["dog"].t5 == SideScores(right_at_1=5, cosine=3.0, loss=9.0)
    assert (added.t5.accuracy, added.t5.cosine, added.t5.loss) == (5 / 12, 1.5 / 12, 1.0)


def test_the_changed_clips_add_up_over_classes_and_sites():
    after = sent_scores()["after"]
    assert after.changes == Changes(better=4, worse=1)
    merged = Scores.merge([after, Scores({"dog": changed(score(), 0, 2)})])
    assert merged.classes["dog"].changes == Changes(better=2, worse=2)
    assert merged.changes == Changes(better=4, worse=3)
    assert Scores.merge([after, Scores({"dog": score()})]).changes is None, "one site did not count them"
    assert sent_scores()["before"].changes is None


def test_clips_for_validation_may_be_more_or_fewer_than_those_for_the_test():
    scores = {"after": Scores({"dog": score(4)}), "validation": Scores({"rain": score(7)})}
    metrics = wire.encode_scores("site-0", 3, scores)
    assert wire.decode_scores(metrics, 4, spec(models=["after", "validation"])) == scores
    with refused(InvalidReplyError, "['after']", "['after', 'validation']"):
        wire.decode_scores(metrics, 4, spec(models=["after"]))


def test_scores_give_figures_over_clips_not_over_sites():
    merged = Scores.merge([Scores({"dog": score(1, 1, 1, 1.0, 0.5)}), Scores({"dog": score(9, 0, 9, 4.0, 4.5)})])
    assert (merged.clips, merged.accuracy, merged.accuracy_at_5) == (10, 0.1, 1.0)
    assert (merged.cosine, merged.loss) == (0.5, 0.5)
    assert merged.class_accuracy == {"dog": 0.1}


def test_no_scores_have_no_figures():
    assert math.isnan(Scores.merge([]).accuracy)


@given(
    parts=st.lists(
        st.dictionaries(st.sampled_from(CLASSES), st.floats(-4, 4).map(lambda x: score(cosine=x, loss=x / 3))),
        min_size=1,
        max_size=8,
    ),
    order=st.randoms(),
)
def test_sums_over_sites_do_not_depend_on_their_order(parts, order):
    sites = [Scores(part) for part in parts]
    other = [Scores(dict(sorted(part.items(), reverse=True))) for part in parts]
    order.shuffle(other)
    one, two = Scores.merge(sites), Scores.merge(other)
    assert one == two
    assert list(one.classes) == list(two.classes)
    assert repr((one.accuracy, one.cosine, one.loss)) == repr((two.accuracy, two.cosine, two.loss))


def test_sites_at_the_limit_can_still_be_merged():
    scores = {"after": Scores({"dog": score(clips=10**9, loss=1e21)})}
    got = wire.decode_scores(wire.encode_scores("site-0", 3, scores), 10**9, spec(models=("after",)))
    assert Scores.merge([got["after"]] * 3).clips == 3 * 10**9


DOG_SCORE = ("models", "after", "dog")
HOSTILE_SCORES = {
    "another version": (change("schema_version", to=78), ("schema_version", 78)),
    "another site": (change("site", to="site-1"), ("'site-1'", "'site-0'")),
    "another round": (change("round_number", to=78), ("round 78", "round 3")),
    "a model missing": (drop("models", "before"), ("['after']", "['after', 'before']")),
    "a model too many": (change("models", "m" * 1000, to={}), ("'mmm", "['after', 'before']")),
    "unknown class": (change("models", "after", "../x", to=score().model_dump()), ("'../x'",)),
    "predicted an unknown class": (change(*DOG_SCORE, "predicted", to={"../x": 4}), ("'../x'",)),
    "more predictions than clips": (change(*DOG_SCORE, "predicted", to={"dog": 5}), ("'dog'", "5", "4")),
    "predictions against the hits": (change(*DOG_SCORE, "predicted", to={"rain": 4}), ("'dog'", "None", "4")),
    "a negative number of predictions": (
        change(*DOG_SCORE, "predicted", to={"dog": -4}),
        ("models.after.dog.predicted",),
        "greater_than_equal",
    ),
    "no clips": (change(*DOG_SCORE, "clips", to=0), ("models.after.dog.clips",), "greater_than_equal"),
    "clips true": (change(*DOG_SCORE, "clips", to=True), ("models.after.dog.clips",), "int_type"),
    "too many clips": (change(*DOG_SCORE, "clips", to=10**10), ("'dog'", 10**10, 10**9)),
    "fewer at 5 than at 1": (change(*DOG_SCORE, "right_at_5", to=3), ("'dog'", "4", "3")),
    "more right than clips": (change(*DOG_SCORE, "right_at_5", to=5), ("'dog'", "5", "4")),
    "negative right": (change(*DOG_SCORE, "right_at_1", to=-1), ("models.after.dog.right_at_1",), "greater_than_equal"),
    "right 2.0": (change(*DOG_SCORE, "right_at_1", to=2.0), ("models.after.dog.right_at_1",), "int_type"),
    "cosine above one": (change(*DOG_SCORE, "cosine", to=4.1), ("'dog'", "cosines", "4.1")),
    "cosine below minus one": (change(*DOG_SCORE, "cosine", to=-4.1), ("'dog'", "cosines", "-4.1")),
    "cosine NaN": (change(*DOG_SCORE, "cosine", to=math.nan), ("manifest", "NaN")),
    "loss overflows": (
        text(lambda t: t.replace('"loss": 2.0', '"loss": 1e999')),
        ("models.before.dog.loss",),
        "finite_number",
    ),
    "loss absurd": (change(*DOG_SCORE, "loss", to=1e30), ("'dog'", "losses", "1e+30")),
    "loss below zero": (change(*DOG_SCORE, "loss", to=-0.1), ("'dog'", "losses", "-0.1")),
    "predictions that were not requested": (change(*DOG_SCORE, "predicted", to={"dog": 4}), ("'dog'", "after")),
    "counts of unseen classes where there are none": (change(*DOG_SCORE, "right_among", to=4), ("'dog'", "after")),
    "clips and examples differ": (change(*DOG_SCORE, "clips", to=5), ("num_examples", 11, 10)),
    "no changed clips": (change(*DOG_SCORE, "changes", to=None), ("'dog'", "after", "no number")),
    "changed clips of the model before": (
        change("models", "before", "dog", "changes", to={"better": 2, "worse": 0}),
        ("'dog'", "before", "a number"),
    ),
    "more better than the gain": (change(*DOG_SCORE, "changes", "better", to=3), ("'dog'", 3, 2, 4)),
    "changed clips turned round": (change(*DOG_SCORE, "changes", to={"better": 0, "worse": 2}), ("'dog'", 0, 2, 4)),
    "more better than were wrong": (
        change("models", "after", "rain", "changes", to={"better": 5, "worse": 4}),
        ("'rain'", 5, 4, "2 of 6"),
    ),
    "more worse than were right": (
        change("models", "after", "rain", "changes", to={"better": 4, "worse": 3}),
        ("'rain'", 4, 3, "2 of 6"),
    ),
    "a huge number of changed clips": (
        change("models", "after", "rain", "changes", to={"better": 10**30 + 1, "worse": 10**30}),
        ("'rain'", "2 of 6"),
    ),
    "better negative": (
        change(*DOG_SCORE, "changes", "better", to=-1),
        ("models.after.dog.changes",),
        "greater_than_equal",
    ),
    "better true": (change(*DOG_SCORE, "changes", "better", to=True), ("models.after.dog.changes",), "int_type"),
    "worse 0.0": (change(*DOG_SCORE, "changes", "worse", to=0.0), ("models.after.dog.changes",), "int_type"),
    "worse missing": (drop(*DOG_SCORE, "changes", "worse"), ("models.after.dog.changes",), "missing"),
    "one number more": (change(*DOG_SCORE, "changes", "same", to=2), ("models.after.dog.changes",), "extra_forbidden"),
    "another class before the step": (
        change("models", "before", "siren", to=score(4).model_dump()),
        ("before", 14, 10),
    ),
    "a class twice": (text(lambda t: t.replace('"dog"', '"rain"')), ("'rain'",)),
}


@pytest.mark.parametrize("case", HOSTILE_SCORES)
def test_hostile_scores_are_refused_with_their_reason(case):
    edit, named, *fault = HOSTILE_SCORES[case]
    manifest = json.loads(wire.encode_scores("site-0", 3, sent_scores())["manifest"])
    _, manifest = edit([], manifest)
    written = manifest if isinstance(manifest, str) else json.dumps(manifest)
    with refused(InvalidReplyError, *named) as caught:
        wire.decode_scores({"manifest": written}, 10, spec())
    assert manifest_fault(caught.value) == fault
    assert_presentable(caught.value)


AFTER_T5 = (*DOG_SCORE, "t5")
HOSTILE_SIDES = {
    "no T5 side": (change(*AFTER_T5, to=None), ("'dog'", "after", "no T5")),
    "a T5 side of the model before": (
        change("models", "before", "dog", "t5", to={"right_at_1": 1, "cosine": 0.5, "loss": 1.0}),
        ("'dog'", "before", "a T5"),
    ),
    "more right than clips": (change(*AFTER_T5, "right_at_1", to=5), ("'dog'", "T5", 5, 4)),
    "negative right": (
        change(*AFTER_T5, "right_at_1", to=-1),
        ("models.after.dog.t5",),
        "greater_than_equal",
    ),
    "right true": (change(*AFTER_T5, "right_at_1", to=True), ("models.after.dog.t5",), "int_type"),
    "cosine above one": (change(*AFTER_T5, "cosine", to=4.1), ("'dog'", "T5", "4.1")),
    "cosine NaN": (change(*AFTER_T5, "cosine", to=math.nan), ("NaN",)),
    "loss absurd": (change(*AFTER_T5, "loss", to=1e30), ("'dog'", "T5", "1e+30")),
    "an extra figure": (change(*AFTER_T5, "mse", to=1.0), ("models.after.dog.t5",), "extra_forbidden"),
    "a figure missing": (drop(*AFTER_T5, "cosine"), ("models.after.dog.t5",), "missing"),
}


@pytest.mark.parametrize("case", HOSTILE_SIDES)
def test_a_hostile_t5_side_is_refused_with_its_reason(case):
    edit, named, *fault = HOSTILE_SIDES[case]
    sent = {"before": Scores({"dog": score()}), "after": Scores({"dog": changed(with_t5(), 0, 1)})}
    _, manifest = edit([], json.loads(wire.encode_scores("site-0", 3, sent)["manifest"]))
    with refused(InvalidReplyError, *named) as caught:
        wire.decode_scores({"manifest": json.dumps(manifest)}, 4, spec(t5_models=("after",)))
    assert manifest_fault(caught.value) == fault
    assert_presentable(caught.value)


@given(data=st.data(), t5=st.booleans())
def test_mutated_scores_are_refused_cleanly_or_are_sound(data, t5):
    with_side = {"before": Scores({"dog": score()}), "after": Scores({"dog": changed(with_t5(), 0, 1)})}
    sent = with_side if t5 else sent_scores()
    clips, sides = (4, ("after",)) if t5 else (10, ())
    manifest = json.loads(wire.encode_scores("site-0", 3, sent)["manifest"])
    _, written = mutate(data, [], manifest)
    try:
        got = wire.decode_scores({"manifest": written}, clips, spec(t5_models=sides))
    except InvalidReplyError as error:
        assert_presentable(error)
    else:
        assert got.keys() == {"before", "after"}
        for scores in got.values():
            for side in (scores, scores.t5) if scores.t5 else (scores,):
                assert 0 <= side.accuracy <= 1
                assert abs(side.cosine) <= 1.001
                assert math.isfinite(side.loss)
            assert scores.accuracy <= scores.accuracy_at_5 <= 1
        assert (got["after"].t5 is not None, got["before"].t5) == (t5, None)
        for name, score_after in got["after"].classes.items():
            before, changes = got["before"].classes[name], score_after.changes
            assert 0 <= changes.worse <= before.right_at_1
            assert before.right_at_1 + changes.better - changes.worse == score_after.right_at_1 <= before.clips


@pytest.mark.parametrize("name", ["right_among", "right_calibrated"])
def test_figures_of_unseen_classes_are_checked_and_add_up(name):
    one, other = (Scores({"dog": score().model_copy(update={name: number})}) for number in (1, 2))
    assert getattr(Scores.merge([one, other]).classes["dog"], name) == 3
    assert Scores.merge([one]).of({"cat"}).classes == {}


def decoded(scores, clips, **expected):
    metrics = wire.encode_scores("site-0", 3, scores)
    return wire.decode_scores(metrics, clips, spec(models=list(scores), **expected))


@pytest.mark.parametrize(
    ("registered", "named"),
    [
        ({"dog": 4, "rain": 6, "siren": 1}, ("'siren'", 0, 1)),
        ({"dog": 4}, ("'rain'", 6, 0)),
        ({"dog": 5, "rain": 5}, ("'dog'", 4, 5)),
        ({}, ("'dog'", 4, 0)),
    ],
    ids=["a class less", "a class more", "other clips", "none"],
)
def test_a_site_must_score_the_test_clips_that_it_reported(registered, named):
    assert decoded(sent_scores(), 10, test_clips={"dog": 4, "rain": 6}) == sent_scores()
    assert decoded(sent_scores(), 10, test_clips=None) == sent_scores()
    with refused(InvalidReplyError, *named):
        decoded(sent_scores(), 10, test_clips=registered)


def test_losses_above_the_largest_possible_loss_are_refused():
    scores = {"after": Scores({"dog": with_t5(1, 0.5, 8.0)})}  # of 4 clips: 0.5 of both sides, 2 of T5's
    assert decoded(scores, 4, t5_models=("after",), max_loss={"clip": 0.5, "t5": 2.0}) == scores
    with refused(InvalidReplyError, "'dog', T5", "losses", 8):
        decoded(scores, 4, t5_models=("after",), max_loss={"clip": 5.0, "t5": 1.5})
    with refused(InvalidReplyError, "'dog'", "losses", 2):
        decoded(scores, 4, t5_models=("after",), max_loss={"clip": -1.5, "t5": 2.0})


def test_predictions_are_those_of_the_model_after_the_server_step():
    predicted = Scores({"dog": changed(score().model_copy(update={"predicted": {"dog": 4}}), 0, 0)})
    alone = Scores({"dog": predicted.classes["dog"].model_copy(update={"changes": None})})
    assert decoded({"after": alone}, 4, confusion=True)["after"] == alone
    with refused(InvalidReplyError, "'dog'", "before"):
        decoded({"before": predicted, "after": predicted}, 4, confusion=True)


def test_counts_of_unseen_classes_are_accepted_only_if_there_are_such_classes():
    among = {"after": Scores({"dog": score().model_copy(update={"right_among": 1, "right_calibrated": 2})})}
    assert decoded(among, 4, has_unseen=True) == among


def test_both_models_are_scored_on_the_same_clips_of_each_class():
    scores = sent_scores() | {"before": Scores({"dog": score(6), "rain": score(4)})}
    with refused(InvalidReplyError, "'dog'", 6, 4):
        decoded(scores, 10)
    scores["before"] = Scores({"siren": score(10)})
    with refused(InvalidReplyError, "'dog'", 0, 4):
        decoded(scores, 10)


def test_without_the_model_before_there_are_no_changed_clips():
    after = {"after": Scores({"dog": score()})}
    assert decoded(after, 4) == after
    with refused(InvalidReplyError, "'dog'", "after", "a number"):
        decoded({"after": sent_scores()["after"]}, 10)
    validated = sent_scores() | {"validation": Scores({"dog": changed(score(), 0, 0)})}
    with refused(InvalidReplyError, "'dog'", "validation", "a number"):
        decoded(validated, 10)
