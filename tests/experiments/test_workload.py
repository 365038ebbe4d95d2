from dataclasses import replace

from ulskip_cli.experiments.workload import timed_prompts


def test_timed_prompts_leave_room_for_what_is_generated(point):
    decoder, work, config = point("speed.new_tokens=10")
    longest = max(len(prompt) for prompt in work.prompts)
    short = replace(work, max_positions=longest)
    batches = timed_prompts(short, 5, 1, decoder.model, config)
    assert [ids.shape for ids, _ in batches] == [(5, longest - 10)]
    room = longest - 10
    assert batches[0][0][0, -len(work.prompts[0]) :].tolist() == work.prompts[0][-room:]


def test_without_a_task_the_prompts_are_random_and_seeded(point):
    decoder, _, config = point("speed.prompt_tokens=7")
    one, again = (timed_prompts(None, 3, 2, decoder.model, config) for _ in range(2))
    assert [ids.shape for ids, _ in one] == [(3, 7)] * 2
    assert all((a == b).all() for (a, _), (b, _) in zip(one, again, strict=True))
    assert (one[0][0] != one[1][0]).any()
