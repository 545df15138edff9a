// A search field over the tables of all settings. It hides what does not contain every word: rows, options, and
// headings that have nothing left below them.
const place = document.querySelector(".settings-filter")
if (place) {
  const article = place.closest("article")
  const parts = [...article.querySelectorAll("h2, h3, p, ul, table")].filter(part => place.compareDocumentPosition(part) & 4 && !part.parentElement.closest("table, ul"))
  const entries = part => part.matches("table") ? [...part.querySelectorAll("tbody tr")] : part.matches("ul") ? [...part.children] : []
  const keys = parts.filter(part => part.matches("table")).flatMap(entries)
  const searched = new Map(parts.flatMap(entries).map(entry => [entry, entry.textContent.toLowerCase()]))

  const field = Object.assign(document.createElement("input"), { type: "search", placeholder: "Filter: a key, a value or a word" })
  field.setAttribute("aria-label", "Filter the settings")
  const count = document.createElement("output")
  place.append(field, count)

  const show = (part, shown) => {
    part.hidden = !shown
    const entry = part.id && document.querySelector(`.md-nav--secondary a[href="#${CSS.escape(part.id)}"]`)
    if (entry) entry.closest("li").hidden = !shown
  }

  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean)
    for (const [entry, text] of searched) entry.hidden = !words.every(word => text.includes(word))
    // From the last part to the first, so that a heading knows what is left below it.
    let below = { H2: false, H3: false }
    for (const part of [...parts].reverse()) {
      if (part.matches("h2, h3")) {
        show(part, !words.length || below[part.tagName])
        below = { H2: part.tagName === "H3" && below.H2, H3: false }
      } else {
        // The table's frame scrolls, so it is hidden with the table.
        const left = entries(part).some(entry => !entry.hidden)
        show(part.closest(".md-typeset__scrollwrap") ?? part, !words.length || left)
        if (left) below = { H2: true, H3: true }
      }
    }
    const left = keys.filter(row => !row.hidden).length
    count.value = words.length ? `${left} of ${keys.length} keys` : `${keys.length} keys`
  }
  field.addEventListener("input", filter)
  filter()
}
