// Looks at the page as it is shown now, and returns what is wrong with it.
const complaints = [];
const complain = (kind, what) => complaints.push(`${kind}: ${what}`);
const name = e => `${e.tagName.toLowerCase()}${e.id ? "#" + e.id : ""} ${e.textContent.trim().slice(0, 40)}`;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const isShown = e => e.getClientRects().length > 0;

document.querySelectorAll("details").forEach(details => (details.open = true));

// Nothing beside the file, and nothing to be run.
const others = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:"));
others.forEach(entry => complain("resource", entry.name));
if (document.scripts.length) complain("script", "there is one");

// Of the page, only tables may be wider than the screen.
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > width) {
  const wide = all("body *").filter(e => !e.closest(".scroll, svg") && e.getBoundingClientRect().right > width);
  complain("overflow", `${document.documentElement.scrollWidth} > ${width}: ${wide.map(name).slice(0, 5)}`);
}

// One who listens finds the way.
let level = 0;
for (const heading of all("h1, h2, h3, h4, h5, h6")) {
  const next = Number(heading.tagName[1]);
  if (next > level + 1) complain("heading", `${name(heading)} after level ${level}`);
  level = next;
}
if (all("h1").length !== 1) complain("heading", "not one h1");
for (const landmark of ["header", "nav", "main", "footer"]) {
  if (all(landmark).length !== 1) complain("landmark", landmark);
}
if (!document.documentElement.lang) complain("language", "none");
const ids = all("[id]").map(e => e.id);
ids.filter((id, i) => ids.indexOf(id) !== i).forEach(id => complain("id", `${id} twice`));
for (const link of all("a[href^='#']")) {
  if (!document.getElementById(link.hash.slice(1))) complain("link", link.hash);
}
for (const e of all("[aria-labelledby]")) {
  for (const id of e.getAttribute("aria-labelledby").split(" ")) {
    if (!document.getElementById(id)?.textContent.trim()) complain("label", `${name(e)} by ${id}`);
  }
}
for (const figure of all("figure")) {
  if (!all("details table tbody tr", figure).length) complain("figure", `${figure.id} has no table`);
  if (!all("a[href^='#raw-']", figure).length || !all(".from code", figure).length) complain("figure", `${figure.id} is from nowhere`);
  if (!all("svg", figure).some(isShown)) complain("figure", `${figure.id} has no plot`);
}

// Pictures: as many marks as values, all of it inside, no text upon other text.
const plots = all("svg").filter(isShown);
for (const svg of plots) {
  const frame = svg.getBoundingClientRect();
  if (frame.width < 200 || frame.height < 40) complain("size", `${svg.id} ${frame.width}×${frame.height}`);
  const marks = all(".mark", svg).filter(mark => {
    const { width, height } = mark.getBoundingClientRect();
    return width > 0 && height > 0;
  });
  const values = Number(svg.dataset.values);
  if (!values || marks.length < values) complain("marks", `${svg.id} has ${marks.length} of ${values}`);
  if (svg.getAttribute("role") !== "img") complain("role", svg.id);
  const boxes = all("text", svg).map(text => [text, text.getBoundingClientRect()]);
  for (const [e, box] of [...boxes, ...marks.map(mark => [mark, mark.getBoundingClientRect()])]) {
    const isInside = box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
    if (!isInside) complain("cut off", `${svg.id}: ${name(e)}`);
  }
  boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const under = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (over > 1 && under > 3) complain("text upon text", `${svg.id}: ${name(one)} and ${name(other)}`);
  }));
}

// WCAG 2.2, 1.4.3: text has a contrast of 4.5 to what it stands on.
const colour = text => text.match(/[\d.]+/g).map(Number);
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(c => c / 255).map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const contrast = (a, b) => {
  const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (light + 0.05) / (dark + 0.05);
};
const background = e => {
  for (; e; e = e.parentElement) {
    const c = colour(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const checked = new Set();
const check = (e, front, back) => {
  const value = contrast(front, back);
  const key = `${front} on ${back}`;
  if (value < 4.5 && !checked.has(key)) complain("contrast", `${value.toFixed(2)} of ${name(e)} (${key})`);
  checked.add(key);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode()); ) {
  const e = node.parentElement;
  if (!node.textContent.trim() || !isShown(e) || e.closest("svg, style")) continue;
  check(e, colour(getComputedStyle(e).color), background(e));
}
for (const svg of plots) {
  const marks = all(".mark", svg).map(mark => [mark, mark.getBoundingClientRect()]);
  for (const text of all("text", svg)) {
    const box = text.getBoundingClientRect();
    const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    const under = marks.filter(([, m]) => m.left < x && x < m.right && m.top < y && y < m.bottom).pop();
    const back = under ? colour(getComputedStyle(under[0]).fill) : background(svg);
    check(text, colour(getComputedStyle(text).fill), back);
  }
}

return {
  complaints,
  plots: plots.length,
  background: getComputedStyle(document.body).backgroundColor,
  mark: plots.length ? getComputedStyle(plots[0].querySelector(".mark") ?? plots[0]).fill : null,
};
