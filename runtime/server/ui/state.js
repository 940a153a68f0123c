/** What a link carries (in the fragment, which browsers do not send to any server), and the theme. */

const THEME = "nopad-theme";

/** The state as a fragment: JSON in UTF-8 in base64url. */
export function encoded(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return "#" + btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The state of a fragment; null for one that is none. Only texts are taken from it. */
export function decoded(fragment) {
  if (fragment.length < 2) return null;
  try {
    const binary = atob(fragment.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    const found = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (typeof found !== "object" || found === null) return null;
    return Object.fromEntries(Object.entries(found).filter(([, value]) => typeof value === "string"));
  } catch {
    return null;
  }
}

export function useTheme(select) {
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  select.value = localStorage.getItem(THEME) ?? "";
  apply(select.value);
  select.addEventListener("change", () => {
    if (select.value) localStorage.setItem(THEME, select.value);
    else localStorage.removeItem(THEME);
    apply(select.value);
  });
}
