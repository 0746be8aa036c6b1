"""`semipd chat`: a conversation in the terminal."""

from __future__ import annotations

from semipd.cli import options as opt


def chat(
    max_tokens: opt.MaxTokens = None,
    stop: opt.Stop = None,
    system: opt.System = None,
    model: opt.Model = None,
    stats: opt.Stats = True,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    target: opt.Target = None,
    host: opt.Host = None,
    port: opt.Port = None,
    api_key: opt.ApiKey = None,
    tls: opt.Tls = False,
    tls_ca: opt.TlsCa = None,
    timeout: opt.Timeout = None,
) -> None:
    """Talk with a running server. /help inside says what else you can type.

    Ctrl-C stops the answer that is coming; Ctrl-D or /quit leaves.
    """
    from semipd.cli.connection import address, connect, errors_as_messages
    from semipd.cli.conversation import Conversation, converse

    server = address(target, host, port)
    with errors_as_messages(server), connect(server, api_key, tls, tls_ca, timeout) as client:
        conversation = Conversation(
            client,
            {
                "model": model,
                "max_tokens": max_tokens,
                "stop": stop or None,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
            },
            system,
        )
        converse(conversation, server, stats)
