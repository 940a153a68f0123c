// A subject of the legend, pressed or pointed at, stays; the others step back. The page says the same without this.
"use strict";
document.documentElement.classList.add("live");
const keys = [...document.querySelectorAll(".legend button")];
const drawn = document.querySelectorAll(".plot [data-s]");
const show = (pointed) => {
  const kept = new Set(keys.filter((key) => key.ariaPressed === "true").map((key) => key.dataset.s));
  if (pointed) kept.add(pointed.dataset.s);
  for (const one of drawn) one.classList.toggle("dim", kept.size > 0 && !kept.has(one.dataset.s));
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
