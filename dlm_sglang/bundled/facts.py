"""Questions about this project and their answers, for the `fact` task."""

from __future__ import annotations

OPENINGS = (
    "{}",
    "Tell me: {}",
    "Quick question: {}",
    "Please answer: {}",
    "I would like to know: {}",
    "One question: {}",
    "Hello! {}",
    "Can you help? {}",
)

FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What is dlm_sglang?", "What does dlm_sglang do?", "Describe dlm_sglang.", "Explain dlm_sglang."),
        "dlm_sglang serves diffusion language models on SGLang, with the generation mode chosen per request.",
    ),
    (
        ("Which modes are there?", "What modes exist?", "Name the modes.", "Which generation modes exist?"),
        "There are three modes: autoregressive, diffusion and self_speculation.",
    ),
    (
        ("Which port is used?", "What is the port?", "Where does the server listen?", "Name the port."),
        "The server listens on 127.0.0.1, port 30000.",
    ),
    (
        ("How do I start the server?", "What starts the server?", "How can I run it?", "How does one start it?"),
        "Run make serve, then send chat requests to the server.",
    ),
    (
        ("What is a block?", "Explain a block.", "What does block mean?", "Define block."),
        "A block is a group of tokens that the model fills in together, in a few denoising steps.",
    ),
    (
        (
            "What is self_speculation?",
            "Explain self_speculation.",
            "Define self_speculation.",
            "How does self_speculation work?",
        ),
        "In self_speculation the model drafts a block in parallel and then verifies it in one causal pass.",
    ),
    (
        ("What is diffusion?", "Explain diffusion.", "Define diffusion.", "How does diffusion work?"),
        "In diffusion the model starts from masks and commits the most confident tokens in each step.",
    ),
    (
        (
            "What is autoregressive mode?",
            "Explain autoregressive mode.",
            "Define autoregressive mode.",
            "How does autoregressive mode work?",
        ),
        "In autoregressive mode the model writes one token in each forward pass.",
    ),
    (
        ("Who are you?", "What are you?", "Introduce yourself.", "What is your name?"),
        "I am the bundled checkpoint of dlm_sglang, a very small model for tests and demos.",
    ),
    (
        ("Which licence applies?", "What is the licence?", "Name the licence.", "Under which licence are you?"),
        "This checkpoint is licensed under Apache-2.0, like the code of the project.",
    ),
)
