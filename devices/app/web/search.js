// @ts-check
// The page: embeds the sentences once, and the query at every key.
import { Embedder, cosine } from "./embedder.js";

const sentences = /** @type {HTMLTextAreaElement} */ (document.querySelector("#sentences"));
const query = /** @type {HTMLInputElement} */ (document.querySelector("#query"));
const results = /** @type {HTMLOListElement} */ (document.querySelector("#results"));
const status = /** @type {HTMLElement} */ (document.querySelector("#status"));

/** @type {{ text: string, embedding: Float32Array }[]} */
let indexed = [];
let asked = 0; // an answer to an older query is not shown

/** @param {Embedder} embedder */
async function index(embedder) {
  const texts = sentences.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const started = performance.now();
  const embeddings = await embedder.embed(texts);
  indexed = texts.map((text, place) => ({ text, embedding: embeddings[place] }));
  const took = performance.now() - started;
  status.textContent = `${texts.length} sentences embedded in ${took.toFixed(0)} ms`;
}

/** @param {Embedder} embedder */
async function search(embedder) {
  const mine = ++asked;
  if (!query.value.trim()) return results.replaceChildren();
  const started = performance.now();
  const [wanted] = await embedder.embed([query.value]);
  const ranked = indexed
    .map(({ text, embedding }) => ({ text, score: cosine(wanted, embedding) }))
    .sort((one, other) => other.score - one.score);
  const took = performance.now() - started;
  if (mine !== asked) return;
  results.replaceChildren(...ranked.slice(0, 5).map(item));
  status.textContent = `${took.toFixed(1)} ms for ${embedder.tokens(query.value).length} tokens`;
  status.dataset.query = query.value;
}

/** @param {{ text: string, score: number }} found */
function item({ text, score }) {
  const line = document.createElement("li");
  const bar = document.createElement("meter");
  bar.value = Math.max(0, score);
  const words = document.createElement("span");
  words.textContent = text;
  const number = document.createElement("output");
  number.textContent = score.toFixed(2);
  line.append(bar, words, number);
  return line;
}

try {
  const started = performance.now();
  const embedder = await Embedder.load("../../");
  const check = /** @type {HTMLElement} */ (document.querySelector("#check"));
  check.textContent = `loaded in ${((performance.now() - started) / 1000).toFixed(1)} s`;
  await index(embedder);
  query.addEventListener("input", () => search(embedder));
  sentences.addEventListener("change", () => index(embedder).then(() => search(embedder)));
  query.disabled = false;
  query.focus();
  Object.assign(globalThis, { embedder }); // for the console
  const smallest = await embedder.check();
  check.textContent += `; smallest cosine to the model's own embeddings: ${smallest.toFixed(6)}`;
} catch (error) {
  status.textContent = String(error);
  throw error;
}
