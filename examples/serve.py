"""Any OpenAI client against a model that the fabric serves: a stream, and what it cost.

    export OPENAI_BASE_URL=https://localhost:7480/v1 OPENAI_API_KEY=$FABRIC_API_KEY
    export SSL_CERT_FILE=~/.local/state/token-fabric/tls/ca.pem     # a local fabric's own authority
    python examples/serve.py --model my-llm "Once upon a time"

An operator offers one with `fabric ops models offer my-llm /models/my-llm --accelerator H100`; `fabric models` lists them.
"""

import argparse

import openai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()

    with openai.OpenAI() as client:
        stream = client.completions.create(
            model=given.model,
            prompt=given.prompt,
            max_tokens=given.tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            print("".join(choice.text for choice in chunk.choices), end="", flush=True)
            if chunk.usage is not None:
                paid = (chunk.model_extra or {}).get("fabric", {})
                print(
                    f"\n{chunk.usage.completion_tokens} tokens written, {paid.get('charged_ct')} compute tokens charged"
                )


if __name__ == "__main__":
    main()
