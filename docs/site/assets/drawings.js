/* Draw what Mermaid can draw. Where tools/site could not add Mermaid, its source stays, as text. */
const blocks = [...document.querySelectorAll(".highlight-mermaid pre")];
if (blocks.length) {
  const mermaid = document.createElement("script");
  mermaid.src = new URL("mermaid.js", document.currentScript.src);
  mermaid.onload = () => {
    const shown = document.body.dataset.theme ?? "auto";
    const dark = shown === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : shown === "dark";
    for (const block of blocks) block.textContent = block.textContent; // without the colours' elements
    window.mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
    window.mermaid.run({ nodes: blocks });
  };
  document.head.append(mermaid);
}
