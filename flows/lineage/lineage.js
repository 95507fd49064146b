const form = document.getElementById("filter");
const nodes = [...document.querySelectorAll("details[data-kind]")];

function filter() {
  const data = new FormData(form);
  const kinds = new Set(data.getAll("kind"));
  const words = data.get("words").toLowerCase().split(/\s+/).filter(Boolean);
  for (const node of nodes) {
    const text = node.textContent.toLowerCase();
    node.hidden = !kinds.has(node.dataset.kind) || !words.every((word) => text.includes(word));
  }
  const shown = nodes.filter((node) => !node.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${nodes.length}`;
}

function open() {
  const node = document.getElementById(location.hash.slice(1));
  if (!(node instanceof HTMLDetailsElement)) return;
  if (node.hidden) {
    form.reset();
    filter();
  }
  node.open = true;
  node.scrollIntoView();
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", open);
filter();
open();
