// A click on a head sorts its table. Above a table may be a box that filters it, and one that shows its other columns.
document.querySelectorAll('.scroll table').forEach(table => {
  const body = table.tBodies[0], number = text => /^[+-]?[\d.,]+ ?%?$/.test(text) ? parseFloat(text.replaceAll(',', '')) : NaN;
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    head.tabIndex = 0;
    head.onclick = () => {
      const down = head.dataset.down !== '1';
      [...table.tHead.rows[0].cells].forEach(other => { other.dataset.down = other === head && down ? '1' : '0'; });
      [...body.rows].sort((one, other) => {
        const a = one.cells[i].textContent, b = other.cells[i].textContent;
        const order = isNaN(number(a)) || isNaN(number(b)) ? a.localeCompare(b) : number(a) - number(b);
        return down ? -order : order;
      }).forEach(row => body.append(row));
    };
    head.onkeydown = event => { if (event.key === 'Enter') head.click(); };
  });
  const tools = table.parentNode.previousElementSibling;
  if (!tools || !tools.classList.contains('tools')) return;
  tools.querySelector('.find').oninput = event => [...body.rows].forEach(row => {
    row.hidden = !row.textContent.toLowerCase().includes(event.target.value.toLowerCase());
  });
  tools.querySelector('.more').onchange = event => table.classList.toggle('whole', event.target.checked);
});
