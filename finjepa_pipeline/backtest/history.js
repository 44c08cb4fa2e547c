const rows=[...document.querySelectorAll('#history tbody tr')];const boxes=[...document.querySelectorAll('.filter')];
const place=Object.fromEntries([...document.querySelectorAll('#history th')].map((h,i)=>[h.textContent,i]));
function show(){const text=document.getElementById('text').value.toLowerCase();let n=0;
rows.forEach(r=>{const ok=r.textContent.toLowerCase().includes(text)&&boxes.every(b=>!b.value||r.cells[place[b.dataset.column]].textContent===b.value);
r.hidden=!ok;n+=ok});document.getElementById('count').textContent=n+' of '+rows.length}
boxes.forEach(b=>{const i=place[b.dataset.column];[...new Set(rows.map(r=>r.cells[i].textContent))].sort().forEach(v=>b.add(new Option(v,v)));
b.onchange=show});document.getElementById('text').oninput=show;show();
document.querySelectorAll('#history th').forEach((h,i)=>{h.style.cursor='pointer';h.onclick=()=>{const num=s=>/^[+-]?[\d.]+%?$/.test(s)?parseFloat(s):NaN;
const down=h.dataset.down=h.dataset.down==='1'?'':'1';rows.sort((a,b)=>{const x=a.cells[i].textContent,y=b.cells[i].textContent;
const d=isNaN(num(x))||isNaN(num(y))?x.localeCompare(y):num(x)-num(y);return down?-d:d}).forEach(r=>r.parentNode.append(r))}});
