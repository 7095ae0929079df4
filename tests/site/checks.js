// What the tests ask of a page. Each is called with `return name()` behind this file's text.

// When formulas are drawn and all pictures are loaded.
function ready() {
    document.querySelectorAll("img").forEach(image => { image.loading = "eager" });
    const pictures = [...document.images].map(image => image.decode().catch(() => null));
    const math = window.MathJax && MathJax.startup ? MathJax.startup.promise : null;
    return Promise.all([math, document.fonts.ready, ...pictures]);
}

// What is wrong with it, by kind.
function broken() {
    const main = document.querySelector("main").cloneNode(true);
    main.querySelectorAll("pre, mjx-container").forEach(code => code.remove());
    const tex = /\\(frac|sqrt|left|begin|epsilon|mu|eta)\b|\$\$|:math:|\{eval-rst\}/g;
    return {
        pictures: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
        formulas: [...document.querySelectorAll(".math")]
            .filter(math => !math.querySelector("mjx-container") || math.querySelector("mjx-merror"))
            .map(math => math.textContent),
        tex: main.textContent.match(tex) || [],
        elsewhere: performance.getEntriesByType("resource")
            .map(entry => entry.name)
            .filter(name => !name.startsWith(location.origin) && !name.startsWith("data:")),
        overflow: Math.max(0, document.documentElement.scrollWidth - window.innerWidth),
    };
}

// From "rgb(1, 2, 3)", or the same with an opacity.
function channels(color) {
    if (!color.startsWith("rgb")) throw new Error(`a colour of another kind: ${color}`);
    return color.match(/[\d.]+/g).map(Number);
}

// https://www.w3.org/TR/WCAG21/#dfn-relative-luminance
function luminance(color) {
    const [r, g, b] = color.slice(0, 3)
        .map(c => c / 255)
        .map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function background(element) {
    for (; element; element = element.parentElement) {
        const color = channels(getComputedStyle(element).backgroundColor);
        if (color.length == 3 || color[3] > 0.5) return color;
    }
    return [255, 255, 255];
}

function contrast(element) {
    const colors = [channels(getComputedStyle(element).color), background(element)];
    const [dark, light] = colors.map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
}

// Text with a contrast below WCAG's 3, the least for large text: comments in code have 4.
function unreadable() {
    const kinds = ["p", "li", "td", "th", "a", "code", "pre span", "h1", "h2", "h3", "mjx-container"];
    return [...document.querySelectorAll(kinds.map(kind => `main ${kind}`))]
        .filter(element => element.getClientRects().length && element.textContent.trim().length > 1)
        .filter(element => contrast(element) < 3)
        .map(element => [contrast(element), element.textContent.slice(0, 60)]);
}
