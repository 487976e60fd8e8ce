// Call a server with npm's `ai`: `node ai_client.mjs URL`. Each check prints a line.
import { generateObject, generateText, jsonSchema, streamText, tool } from 'ai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';

const provider = createOpenAICompatible({
  name: 'o2o', baseURL: process.argv[2], includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider.chatModel('any');
const schema = jsonSchema({
  type: 'object', properties: { a: { enum: ['x', 'y'] } }, required: ['a'], additionalProperties: false,
});
const call = { model, prompt: 'Hello', temperature: 0, maxOutputTokens: 80 };
const tools = { f: tool({ description: 'f', inputSchema: schema }) };

const results = {};
const whole = await generateText({ ...call, maxOutputTokens: 8 });
results.text = whole.finishReason === 'length' && whole.usage.outputTokens === 8;
const stream = streamText({ ...call, maxOutputTokens: 8 });
let text = '';
for await (const part of stream.textStream) text += part;
results.stream = text === whole.text;
const object = await generateObject({ ...call, schema });
results['structured output'] = ['x', 'y'].includes(object.object.a);
const called = await generateText({ ...call, tools, toolChoice: 'required' });
results.tools = called.toolCalls[0].toolName === 'f' && ['x', 'y'].includes(called.toolCalls[0].input.a);
const streamed = streamText({ ...call, tools, toolChoice: 'required' });
for await (const _ of streamed.fullStream);
results['stream of a tool call'] = ['x', 'y'].includes((await streamed.toolCalls)[0].input.a);
for (const [name, passed] of Object.entries(results)) console.log(`${passed ? 'pass' : 'FAIL'}  ai: ${name}`);
process.exit(Object.values(results).every(Boolean) ? 0 : 1);
