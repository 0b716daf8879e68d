"""How far the log-probabilities of prompts are from those of transformers."""

import torch


def prompt_logprobs(model, prompt):
    """Log-probability of every prompt token but the first, by transformers."""
    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        rows = model(ids).logits[0].float().log_softmax(-1)
    return rows[:-1].gather(-1, ids[0, 1:, None])[:, 0].cpu()


def prompt_errors(engine, prompts, oracle, peer):
    """(the engine's, the peer's): of every prompt token but the first, against the oracle."""
    ours, peers = [], []
    for prompt in prompts:
        reply = engine.generate(
            input_ids=prompt,
            sampling_params={"max_new_tokens": 0},
            return_logprob=True,
            logprob_start_len=1,
        )
        got = torch.tensor([e[0] for e in reply["meta_info"]["input_token_logprobs"]])
        expected = prompt_logprobs(oracle, prompt)
        ours.append((got - expected).abs())
        peers.append((prompt_logprobs(peer, prompt) - expected).abs())
    return torch.cat(ours), torch.cat(peers)
