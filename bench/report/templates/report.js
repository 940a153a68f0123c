// Pressing or pointing at a subject of the legend dims the others. The page is complete without this script.
"use strict";
document.documentElement.classList.add("live");
const keys = [...document.querySelectorAll(".legend button")];
const drawn = document.querySelectorAll(".plot [data-s]");
const show = (pointed) => {
  const kept = new Set(keys.filter((key) => key.ariaPressed === "true").map((key) => key.dataset.s));
  if (pointed) kept.add(pointed.dataset.s);
  for (const shape of drawn) shape.classList.toggle("dim", kept.size > 0 && !kept.has(shape.dataset.s));
};
for (const key of keys) {
  key.addEventListener("click", () => {
    const pressed = key.ariaPressed !== "true";
    for (const same of keys) if (same.dataset.s === key.dataset.s) same.ariaPressed = String(pressed);
    show();
  });
  key.addEventListener("pointerenter", () => show(key));
  key.addEventListener("pointerleave", () => show());
}
