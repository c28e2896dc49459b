() => {
  // Text whose colour is too close to what it stands on (WCAG 2.1, 1.4.3): [text, ratio, needed].
  const parse = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [], seen = [];
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const check = (text, colour, behind, size, weight) => {
    const needed = size >= 24 || (size >= 18.66 && weight >= 700) ? 3 : 4.5;
    seen.push(text);
    if (ratio(colour, behind) < needed) bad.push([text, ratio(colour, behind), needed]);
  };
  document.querySelectorAll("body *:not(script):not(noscript)").forEach((element) => {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
    if (!own.length || element.hidden || !element.getClientRects().length) return;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    if (element.classList.contains("in")) {
      document.querySelectorAll("svg path.t-f, svg path.t-b").forEach((path) => check(
        "in a pass", parse(colour), parse(getComputedStyle(path).fill), 11, 400));
    } else check(own[0].data.trim(), parse(colour), ground(element), parseFloat(style.fontSize), Number(style.fontWeight));
  });
  return { bad, seen: seen.length };
}
