"""Run by `test_clients_of_the_endpoint` in an environment of its own: each client as its users write it."""

import asyncio
import json
import os
import sys

URL, KEY, MODEL = os.environ["ENDPOINT"], os.environ["API_KEY"], os.environ["MODEL"]
ASK = [{"role": "user", "content": "hello"}]


def use_openai():
    import openai

    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=5)
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=5, stream=True))
        said = {"whole": whole.usage.completion_tokens, "cost": whole.usage.model_extra["cost"]}
        said["stream"] = len([each for each in chunks if each.choices])
        said["charge"] = chunks[-1].model_extra["fabric"]["charged_uhs"]
        response = client.responses.create(model=MODEL, input="hello", max_output_tokens=5)
        said["response"] = response.usage.output_tokens
        events = list(client.responses.create(model=MODEL, input="hello", max_output_tokens=5, stream=True))
        said["last"] = events[-1].type
        said["models"] = [each.id for each in client.models.list()]
        said["id"] = whole._request_id
        try:
            client.chat.completions.create(model=MODEL, messages=ASK, tools=[TOOL], max_tokens=5)
        except openai.BadRequestError as error:
            said["tools"] = error.code
        try:
            client.completions.create(model=MODEL, prompt="x " * 3_000, max_tokens=5)
        except openai.BadRequestError as error:
            said["long"] = error.code
        return said


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def use_anthropic():
    import anthropic

    with anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(model=MODEL, messages=ASK, max_tokens=5)
        with client.messages.stream(model=MODEL, messages=ASK, max_tokens=5) as stream:
            streamed = stream.get_final_message()
        return {"whole": whole.usage.output_tokens, "stream": streamed.usage.output_tokens}


def use_litellm():
    import litellm

    common = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY, "max_tokens": 5, "num_retries": 0}
    whole = litellm.completion(messages=ASK, **common)
    chunks = list(litellm.completion(messages=ASK, stream=True, stream_options={"include_usage": True}, **common))
    said = {"whole": whole.usage.completion_tokens, "stream": chunks[-1].usage.completion_tokens}
    try:
        litellm.text_completion(**{**common, "model": f"text-completion-openai/{MODEL}"}, prompt="x " * 3_000)
    except litellm.ContextWindowExceededError:
        said["long"] = "context_length_exceeded"
    return said


def use_langchain():
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=KEY, max_tokens=5, max_retries=0, stream_usage=True)
    streamed = None
    for chunk in chat.stream("hello"):
        streamed = chunk if streamed is None else streamed + chunk
    return {
        "whole": chat.invoke("hello").usage_metadata["output_tokens"],
        "stream": streamed.usage_metadata["output_tokens"],
    }


def use_pydantic_ai():
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
    agent = Agent(model, model_settings={"max_tokens": 5})
    whole = agent.run_sync("hello")

    async def streamed():
        async with agent.run_stream("hello") as run:
            return "".join([text async for text in run.stream_text(delta=True)])

    return {
        "whole": whole.usage.output_tokens if not callable(whole.usage) else whole.usage().output_tokens,
        "stream": len(asyncio.run(streamed())) > 0,
    }


def use_instructor():
    from typing import Literal

    import instructor
    import openai
    from instructor.exceptions import InstructorRetryException
    from pydantic import BaseModel

    class Place(BaseModel):
        city: Literal["Beijing", "Shanghai"]
        is_capital: bool

    class Answer(BaseModel):
        yes: bool
        first: Place
        second: Place

    endpoint = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    asked = {"model": MODEL, "messages": ASK, "response_model": Answer, "max_tokens": 200, "max_retries": 0, "seed": 1}
    client = instructor.from_openai(endpoint, mode=instructor.Mode.JSON_SCHEMA)
    answer = client.chat.completions.create(**asked, temperature=1.5)
    kinds = [type(part).__name__ for part in (answer.yes, answer.first, answer.second.is_capital)]
    try:
        instructor.from_openai(endpoint).chat.completions.create(**asked)
    except InstructorRetryException as error:  # by tools, as it asks unless told otherwise: this model has none
        return {"schema": kinds, "tools": "tools_not_offered" in str(error) and "response_format" in str(error)}
    return {"schema": kinds, "tools": False}


if __name__ == "__main__":
    print(json.dumps(globals()[f"use_{sys.argv[1]}"]()))
