// Run by `test_clients_of_the_endpoint`: the clients of npm, as their users write them.
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const { ENDPOINT, API_KEY, MODEL } = process.env;
const messages = [{ role: "user", content: "hello" }];
const said = {};

const openai = new OpenAI({ baseURL: `${ENDPOINT}/v1`, apiKey: API_KEY, maxRetries: 0 });
const whole = await openai.chat.completions.create({ model: MODEL, messages, max_tokens: 5 });
said.whole = whole.usage.completion_tokens;
said.cost = whole.usage.cost;
said.id = whole._request_id;
let last = null;
for await (const chunk of await openai.chat.completions.create({ model: MODEL, messages, max_tokens: 5, stream: true })) last = chunk;
said.charge = last.fabric.charged_uhs;
for await (const event of await openai.responses.create({ model: MODEL, input: "hello", max_output_tokens: 5, stream: true })) last = event;
said.last = last.type;
try {
  await openai.chat.completions.create({ model: "none", messages });
} catch (error) {
  said.missing = error.code;
}

const anthropic = new Anthropic({ baseURL: ENDPOINT, apiKey: API_KEY, maxRetries: 0 });
const message = await anthropic.messages.stream({ model: MODEL, messages, max_tokens: 5 }).finalMessage();
said.stream = message.usage.output_tokens;
console.log(JSON.stringify(said));
