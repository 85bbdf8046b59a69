// The page's texts in the language of its viewer: the server sends them with the page.

const words = JSON.parse(document.getElementById("words").textContent);

/** A text, given in English, with the values of what stands in its braces. */
export function tr(text, values = {}) {
  return (words[text] ?? text).replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}
